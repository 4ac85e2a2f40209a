"""What is compared, as tables of text: for a terminal and for a page alike."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from attvae.config import MAY_CHANGE
from attvae.pages.figures import MISSING, duration, figure
from attvae.tracking.run import Point, Run

_FEW_RUNS = 4
_DURING = ("val/nelbo_nats", "val/bits_per_dim", "val/kl_nats", "val/active_layers", "perf/images_per_s")
_AT_THE_END = ("test/nelbo_nats", "test/nll_nats", "test/bits_per_dim")


class Table(NamedTuple):
    """The first column says what a row is about."""

    name: str
    """For ids and anchors."""
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def all_tables(runs: Sequence[Run]) -> list[Table]:
    """Those that have something to say."""
    tables = [
        what_they_are(runs),
        config_differences(runs),
        at_equal_samples(runs, _DURING),
        at_equal_wall_time(runs, _DURING),
        at_the_end(runs, _AT_THE_END),
    ]
    return [table for table in tables if table.rows and len(table.columns) > 1]


def not_comparable(runs: Sequence[Run]) -> list[str]:
    """Why figures of these runs may not be set against each other; empty if nothing speaks against it."""
    reasons = []
    if len(set(sizes := [_dimensions(run) for run in runs]) - {None}) > 1:
        found = _each(runs, [f"{size} values" if size else None for size in sizes])
        reasons.append(
            f"images of different sizes ({found}): nats are not comparable, bits/dim of other images mean little"
        )
    fingerprints = [run.tags.get("dataset_fingerprint") for run in runs]
    if len(set(fingerprints) - {None}) > 1:
        found = _each(
            runs,
            [
                f"{run.tags.get('dataset', '')} {print_ or ''}".strip() or None
                for run, print_ in zip(runs, fingerprints, strict=True)
            ],
        )
        reasons.append(f"different data sets ({found}): no figure is comparable")
    elif None in fingerprints and len({run.config.get("data.path") for run in runs}) > 1:
        found = _each(runs, [run.config.get("data.path") for run in runs])
        reasons.append(f"perhaps different data sets ({found}): then no figure is comparable")
    return reasons


def what_they_are(runs: Sequence[Run]) -> Table:
    columns = ("run", "status", "samples seen", "time", "parameters", "data", "from")
    rows = [
        (
            run.name,
            f"{run.status}: {run.reason}" if run.reason and run.status != "FINISHED" else run.status,
            f"{run.samples_seen:,}",
            duration(run.wall_s),
            _integer(run.summary.get("parameters", run.tags.get("parameters"))),
            str(run.tags.get("dataset", run.config.get("data.path", MISSING))),
            run.source,
        )
        for run in runs
    ]
    return Table("runs", "The runs", columns, rows)


def config_differences(runs: Sequence[Run]) -> Table:
    """Keys whose values differ; those that do not change what is learnt come last.

    A row for each key, or, of many runs that differ in few keys, for each run.
    """
    keys = sorted({key for run in runs for key in run.config}, key=lambda key: (_changes_nothing(key), key))
    differing = [key for key in keys if len({run.config.get(key) for run in runs}) > 1]
    title = "What differs in the configuration" if differing else "The configurations are equal"
    if len(runs) > max(len(differing), _FEW_RUNS):
        rows = [(run.name, *(run.config.get(key, MISSING) for key in differing)) for run in runs]
        return Table("config", title, ("run", *differing), rows)
    return Table(
        "config",
        title,
        ("key", *(run.name for run in runs)),
        [(key, *(run.config.get(key, MISSING) for run in runs)) for key in differing],
    )


def at_equal_samples(runs: Sequence[Run], metrics: Sequence[str]) -> Table:
    """Each metric at the largest number of samples seen at which every run that knows the metric has a value of it."""
    found = []
    for metric in metrics:
        values = [{point.samples_seen: point.value for point in run.series(metric)} for run in runs]
        steps = [set(each) for each in values if each]
        if common := set.intersection(*steps) if steps else set():
            at = max(common)
            found.append((f"{metric}\nat {at:,}", [each.get(at) for each in values]))
    return _figures(runs, "equal-samples", "At equal samples seen", found)


def at_equal_wall_time(runs: Sequence[Run], metrics: Sequence[str]) -> Table:
    """Each metric's last value of each run up to the time at which the first run has had its last one."""
    found = []
    for metric in metrics:
        series = [run.series(metric) for run in runs]
        if ends := [points[-1].wall_s for points in series if points]:
            end = min(ends)
            found.append((f"{metric}\nwithin {duration(end)}", [_last(points, end) for points in series]))
    return _figures(runs, "equal-time", "At equal wall time", found)


def at_the_end(runs: Sequence[Run], metrics: Sequence[str]) -> Table:
    """Each metric's last value of each run, wherever that run ends."""
    series = {metric: [run.series(metric) for run in runs] for metric in metrics}
    found = [(metric, [_last(points, math.inf) for points in each]) for metric, each in series.items() if any(each)]
    return _figures(runs, "end", "At the end of each run", found)


def _figures(runs: Sequence[Run], name: str, title: str, found: Sequence[tuple[str, list[float | None]]]) -> Table:
    rows = [(run.name, *(figure(values[i]) for _, values in found)) for i, run in enumerate(runs)]
    return Table(name, title, ("run", *(column for column, _ in found)), rows)


def _last(points: Sequence[Point], wall_s: float) -> float | None:
    return next((point.value for point in reversed(points) if point.wall_s <= wall_s), None)


def _dimensions(run: Run) -> int | None:
    """Values in an image: what turns nats into bits per dimension."""
    for group in ("val", "train"):
        nats, bits = run.series(f"{group}/nelbo_nats"), run.series(f"{group}/bits_per_dim")
        for nelbo, per_dim in zip(nats, bits, strict=False):
            if math.isfinite(nelbo.value) and math.isfinite(per_dim.value) and per_dim.value:
                return round(nelbo.value / math.log(2) / per_dim.value)
    return None


def _changes_nothing(key: str) -> bool:
    return any(key == may or key.startswith(f"{may}.") for may in MAY_CHANGE)


def _integer(value: object) -> str:
    return f"{int(str(value)):,}" if str(value).isdecimal() else MISSING


def _each(runs: Sequence[Run], values: Sequence[str | None]) -> str:
    return ", ".join(f"{run.name}: {value or 'unknown'}" for run, value in zip(runs, values, strict=True))
