"""A line on stderr now and then, for sets that take long."""

import sys
import time

SAID_EVERY_S = 10.0


class Progress:
    """Says nothing of what is done within seconds."""

    def __init__(self, done: str, total: int) -> None:
        self._done, self._total = done, total
        self._started = self._said = time.monotonic()

    def say(self, images: int) -> None:
        now = time.monotonic()
        if now - self._said >= SAID_EVERY_S:
            self._said = now
            rate = images / (now - self._started)
            left_s = (self._total - images) / rate
            print(
                f"{self._done} {images:,}/{self._total:,} images, {rate:,.1f} images/s, {left_s:,.0f} s left",
                file=sys.stderr,
                flush=True,
            )
