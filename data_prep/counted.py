"""How far a count of unknown length is, now and then."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from data_prep.progress import EVERY_S

T = TypeVar("T")


def counted(things: Iterable[T], what: str) -> Iterator[T]:
    """Passes `things` on, and prints their number every ten seconds: `what: 120,000`."""
    shown = time.monotonic()
    for number, thing in enumerate(things):
        if (now := time.monotonic()) - shown >= EVERY_S:
            print(f"{what}: {number:,}", file=sys.stderr, flush=True)
            shown = now
        yield thing
