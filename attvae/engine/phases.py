"""Where this rank is, and how long it has been in each phase of its work."""

import time
from collections import defaultdict

import torch


class Phases:
    """One phase at a time: entering one ends the one before.

    On a GPU, times are those of the GPU: work is only queued by the calls that the host makes.
    """

    def __init__(self, device: torch.device) -> None:
        self.name = "start"
        self.entered = 0
        """Phases entered so far: what a watchdog compares over the ranks."""
        self._device = device
        self._since = time.perf_counter()
        self._seconds: dict[str, float] = defaultdict(float)
        self._marks: list[tuple[str, torch.cuda.Event]] = []

    def enter(self, name: str) -> None:
        self.entered += 1
        if self._device.type == "cuda":
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
            self._marks.append((name, mark))
        else:
            now = time.perf_counter()
            self._seconds[self.name] += now - self._since
            self._since = now
        self.name = name

    def take(self) -> dict[str, float]:
        """Seconds in each phase since the last call. Waits for the GPU."""
        self.enter(self.name)
        if self._marks:
            self._marks[-1][1].synchronize()
            for (name, mark), (_, following) in zip(self._marks, self._marks[1:], strict=False):
                self._seconds[name] += mark.elapsed_time(following) / 1000
            self._marks = self._marks[-1:]
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds
