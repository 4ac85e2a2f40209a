"""`attvae doctor`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from attvae.commands.outcome import RANK, bad_input, end_silently


def doctor(
    config_file: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="The configuration of the run that is meant.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as data.path=data/digits.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Its run folder; by default runs/ and CONFIG's stem.")] = None,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="On all ranks that a launcher has started: do they fit together?")
    ] = False,
    write_deepspeed_env: Annotated[
        bool, typer.Option("--write-deepspeed-env", help="Write .deepspeed_env for the deepspeed command, no more.")
    ] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,  # the deepspeed launcher passes it
) -> None:
    """Find what would keep a run from working, before it is started."""
    from attvae.doctor import deepspeed_env, report

    if write_deepspeed_env:
        with bad_input(found_by_all=True):
            report.show_written(deepspeed_env.write(os.environ))
        return
    from attvae.config import load
    from attvae.doctor.examine import examine, examine_together
    from attvae.engine.rendezvous import FailedOnAnotherRankError, leave

    folder = out or Path("runs") / (config_file.stem if config_file else "")
    try:
        with bad_input(found_by_all=not distributed):
            if distributed:
                checks = examine_together(config_file, overrides or [], folder)
            else:
                checks = examine(load(config_file, overrides or []) if config_file else None, folder)
    except FailedOnAnotherRankError as error:
        end_silently(2 if error.bad_input else 1)
    finally:
        leave()
    if RANK == 0:
        report.show(checks)
    if any(check.verdict == "problem" for check in checks):
        if RANK:
            end_silently(1)
        raise typer.Exit(1)
