"""What a tracker does. Trackers exist on rank 0 only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """A place where the figures of a run go. Steps are samples seen.

    The journal comes first in any list of trackers: it is the record, and MLflow is fed from it.
    """

    def metrics(self, samples_seen: int, values: Mapping[str, float]) -> None: ...

    def image(self, samples_seen: int, name: str, path: Path) -> None:
        """A picture: `name` has no slash (e.g. `samples`), `path` is a PNG in the run folder's images/."""

    def close(self, status: Status, reason: str = "") -> None: ...
