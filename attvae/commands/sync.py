"""`attvae sync`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from attvae.commands.outcome import bad_input


def sync(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
) -> None:
    """Send to MLflow what run folders hold and it lacks: after an outage, or from a machine with a network."""
    from attvae.sync import check_run_id
    from attvae.sync import sync as send

    with bad_input(found_by_all=True):
        check_run_id(runs)
    codes = [0]
    for run in runs:
        try:
            print(send(run), flush=True)
        except (ValueError, OSError) as error:
            print(f"attvae: {error}", file=sys.stderr, flush=True)
            codes.append(2 if isinstance(error, ValueError) else 1)
    raise typer.Exit(max(codes))
