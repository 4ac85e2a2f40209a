"""`attvae claims`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from attvae.commands.outcome import bad_input


def claims(
    study_file: Annotated[
        Path, typer.Argument(metavar="STUDY", help="A YAML file, such as configs/claims/digits.yaml.")
    ] = Path("configs/claims/digits.yaml"),
    full: Annotated[bool, typer.Option("--full", help="Also the sets that take long.")] = False,
    address: Annotated[
        str | None, typer.Option(metavar="RAY", help="Run the cells on this Ray cluster; by default here.")
    ] = None,
    cell: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="This cell alone, such as depth/04_both_seed-0; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Its folder; by default runs/claims/ and STUDY's stem.")] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where results.md is written; by default the study's folder.")
    ] = None,
) -> None:
    """The paper's claims, put to the test: a study of many runs that can be interrupted, and a page of its results."""
    from attvae.claims.page import write_page
    from attvae.claims.run import plan, run_study
    from attvae.claims.study import load_study
    from attvae.engine.stop import STOPPED
    from attvae.tracking.secrets import without_secrets

    folder = out or Path("runs/claims") / study_file.stem
    with bad_input(found_by_all=True):
        if page is not None and not page.is_dir():
            raise ValueError(f"--page {page} is no folder: make it first, or leave --page out")
        study = load_study(study_file)
        cells = plan(study, full=full, only=cell or [])
        command = without_secrets(shlex.join(["attvae", *sys.argv[1:]]))
        ended = run_study(study, cells, folder, address, command, full)
        write_page(ended.results, page or folder)
        print(f"page: {(page or folder) / 'results.md'}")
    if ended.interrupted:
        print(f"attvae: {ended.interrupted}: the same command goes on", file=sys.stderr, flush=True)
        raise typer.Exit(STOPPED)
    if ended.failed:
        said = f"{ended.failed} of {len(cells)} cells have failed, as the page says; the same command tries them again"
        print(f"attvae: {said}", file=sys.stderr, flush=True)
        raise typer.Exit(1)
