"""`attvae sweep`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from attvae.commands.outcome import bad_input


def sweep(
    search_file: Annotated[
        Path, typer.Argument(metavar="SEARCH", help="A YAML file, such as configs/search/digits.yaml.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of that file, such as trials=20.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="RAY", help="Join this Ray cluster; by default one of its own, here.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep that --out holds.")] = False,
    out: Annotated[Path | None, typer.Option(help="Its folder; by default runs/search/ and SEARCH's stem.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show trials and cost, no more.")
    ] = False,
) -> None:
    """Search hyperparameters on Ray: every trial is a training run. Leaves trials.json, best.yaml and a page."""
    from attvae.search.config import load_search
    from attvae.search.show import show_sweep, show_sweep_plan
    from attvae.search.space import check

    folder = out or Path("runs/search") / search_file.stem
    with bad_input(found_by_all=True):
        search = load_search(search_file, overrides or [])
        check(search, data_needed=not dry_run)
    if dry_run:
        show_sweep_plan(search)
        return
    from attvae.engine.stop import STOPPED, StopRequestedError
    from attvae.search.standings import SweepFailedError
    from attvae.search.tune import sweep as run

    try:
        with bad_input(found_by_all=True):
            run(search, folder, address, resume)
    except StopRequestedError as request:
        print(f"attvae: {request}: the same command with --resume goes on", file=sys.stderr, flush=True)
        raise typer.Exit(STOPPED) from None
    except SweepFailedError as error:
        print(f"attvae: {error}", file=sys.stderr, flush=True)
        raise typer.Exit(1) from None
    show_sweep(search, folder)
