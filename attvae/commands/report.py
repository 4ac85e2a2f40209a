"""`attvae report`."""

from pathlib import Path
from typing import Annotated

import typer

from attvae.commands.outcome import bad_input


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder; the run may still be going.")],
    out: Annotated[Path | None, typer.Option(help="The page to write; by default report.html in RUN.")] = None,
) -> None:
    """One page about a run, for any browser: figures, curves, pictures, attention, how to get it again."""
    from attvae.report.make import report as make

    with bad_input(found_by_all=True):
        print(make(run, out))
