"""Several trackers as one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from attvae.tracking.protocol import Status, Tracker


class FanOut:
    """Hands everything to each of its trackers in order; without any (on ranks other than 0) it is silent."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def metrics(self, samples_seen: int, values: Mapping[str, float]) -> None:
        for tracker in self._trackers:
            tracker.metrics(samples_seen, values)

    def image(self, samples_seen: int, name: str, path: Path) -> None:
        for tracker in self._trackers:
            tracker.image(samples_seen, name, path)

    def close(self, status: Status, reason: str = "") -> None:
        for tracker in self._trackers:
            tracker.close(status, reason)
