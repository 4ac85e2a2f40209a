"""How far the work is: one line that stays in place on a terminal, a line now and then where the output is kept."""

import sys
import time
from datetime import timedelta

EVERY_S = 10.0


class Progress:
    """
    Args:
        total: of units of work.
        done: of these, before the work starts: they count for no rate.
        unit: in the plural.
    """

    def __init__(self, total: int, done: int = 0, unit: str = "images") -> None:
        self._total = total
        self._done = self._before = done
        self._unit = unit
        self._bytes = 0
        self._start = time.monotonic()
        self._shown = self._start if not sys.stdout.isatty() else 0.0

    def add(self, units: int, size: int) -> None:
        """More is done: so many units, in so many bytes."""
        self._done += units
        self._bytes += size
        now = time.monotonic()
        if sys.stdout.isatty():
            print(f"\r{self._line(now)}\033[K", end="", flush=True)
        elif now - self._shown >= EVERY_S:
            print(self._line(now), flush=True)
            self._shown = now

    def close(self) -> None:
        """The line gives way to what comes next."""
        if sys.stdout.isatty():
            print("\r\033[K", end="", flush=True)

    def _line(self, now: float) -> str:
        elapsed_s = max(now - self._start, 1e-9)
        rate = (self._done - self._before) / elapsed_s
        eta = timedelta(seconds=round((self._total - self._done) / rate)) if rate else "unknown"
        return (
            f"{self._done:,}/{self._total:,} {self._unit}  {rate:,.0f} {self._unit}/s  "
            f"{self._bytes / elapsed_s / 1e6:,.1f} MB/s  ETA {eta}"
        )
