"""`attvae compare`."""

from pathlib import Path
from typing import Annotated

import typer

from attvae.commands.outcome import bad_input


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Run folders, or MLflow run ids.")],
    out: Annotated[Path | None, typer.Option(help="Write a page too, such as compare.html.")] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow's store, for run ids; by default MLFLOW_TRACKING_URI, or the runs' own.")
    ] = None,
) -> None:
    """Runs side by side: what differs, figures at equal samples seen and at equal time; curves and pictures."""
    from attvae.compare.page import page
    from attvae.compare.runs import read_runs
    from attvae.compare.terminal import show_comparison
    from attvae.pages.document import write_page

    with bad_input(found_by_all=True):
        found = read_runs(runs, tracking_uri)
        show_comparison(found)
        if out:
            write_page(page(found), out)
            print(f"page: {out}")
