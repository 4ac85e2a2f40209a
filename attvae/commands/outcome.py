"""How a command ends: one message, from one rank, and an exit code."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

RANK = int(os.environ.get("RANK", "0"))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", str(RANK)))
RANKS = int(os.environ.get("WORLD_SIZE", "1"))
SILENT_S = 3.0
"""A rank that leaves a message to another waits before it exits: the first exit makes launchers end all ranks."""


def end_silently(code: int) -> NoReturn:
    """Exits after SILENT_S: another rank says why."""
    time.sleep(SILENT_S)
    raise typer.Exit(code) from None


@contextmanager
def bad_input(*, found_by_all: bool) -> Iterator[None]:
    """Turns a ValueError into one message and exit code 2, an OSError (network, disk) into one and exit code 1.

    What all ranks find alike, the first one of each host says: another host may lack what this one has.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        code = 2 if isinstance(error, ValueError) else 1
        if LOCAL_RANK and found_by_all:
            end_silently(code)
        print(f"attvae{f' (rank {RANK})' if RANK else ''}: {error}", file=sys.stderr, flush=True)
        raise typer.Exit(code) from None
