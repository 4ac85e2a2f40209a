"""A run to be looked at, whether it was read from its run folder or from MLflow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

from attvae.tracking.jsonl import Row

PAUSE_S = 60.0
"""Pictures and a checkpoint between two rows take less; what takes longer was a stop."""


class Point(NamedTuple):
    samples_seen: int
    wall_s: float
    value: float


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: what people call it.
        source: the run folder or the MLflow run id that it was read from.
        status: FINISHED, FAILED, KILLED or RUNNING.
        reason: why it ended, where that is known.
        config: the tree of config.yaml, or MLflow's params, whose keys are dotted.
        tags: what else is known of it, such as dataset, dataset_fingerprint, parameters.
        rows: of the journal, in the order written.
        pictures: (name, samples seen) -> reads the PNG file.
        summary: that of summary.json; empty before the end.
    """

    name: str
    source: str
    status: str
    reason: str
    config: Mapping[str, Any]
    tags: Mapping[str, Any]
    rows: Sequence[Row]
    pictures: Mapping[tuple[str, int], Callable[[], bytes]]
    summary: Mapping[str, Any]

    @property
    def samples_seen(self) -> int:
        return int(self.rows[-1]["samples_seen"]) if self.rows else 0

    @property
    def wall_s(self) -> float:
        """Seconds up to the last row, as `_wall_times` counts them."""
        return self._wall_times[-1] if self.rows else 0.0

    @cached_property
    def metrics(self) -> frozenset[str]:
        return frozenset(name for row in self.rows for name in row) - {"samples_seen", "time"}

    def series(self, metric: str) -> list[Point]:
        """The values of a metric, one for each step; the first one of a step counts."""
        points: dict[int, Point] = {}
        for row, wall_s in zip(self.rows, self._wall_times, strict=True):
            if metric in row:
                step = int(row["samples_seen"])
                points.setdefault(step, Point(step, wall_s, row[metric]))
        return [points[step] for step in sorted(points)]

    @cached_property
    def _wall_times(self) -> list[float]:
        """Seconds of training up to each row, without the pauses between a stop and going on.

        The first row counts as far as `perf/images_per_s` says that the training took to get there.
        A row says when it was written, not whether the run had stopped before. So two rows are as far apart as their
        times say, unless that is over PAUSE_S more than the training between them took by `perf/images_per_s`: then
        that alone counts.
        """
        speed = 0.0
        speeds = []  # images/s up to each row: of the next log line, which covers it
        for row in reversed(self.rows):
            speed = row.get("perf/images_per_s", speed)
            speeds.append(speed)
        walls = [self.rows[0]["samples_seen"] / speeds[-1] if speeds[-1] > 0 else 0.0] if self.rows else []
        for (before, row), images_per_s in zip(pairwise(self.rows), reversed(speeds[:-1]), strict=True):
            took = max(row["time"] - before["time"], 0.0)
            images = row["samples_seen"] - before["samples_seen"]
            if images > 0 and images_per_s > 0 and took > images / images_per_s + PAUSE_S:
                took = images / images_per_s
            walls.append(walls[-1] + took)
        return walls
