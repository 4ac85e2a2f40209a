"""A trial as trials.json tells it, and the figures that its run folders hold."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from attvae.run_folder import RunFolder
from attvae.search.config import METRICS
from attvae.spec import Config
from attvae.tracking.jsonl import Row, read

Status = Literal["running", "finished", "stopped", "failed"]
"""finished: it had the whole budget; stopped: the scheduler ended it."""

TEST_FIGURES = ("nelbo_nats", "nll_nats", "bits_per_dim")


class Trial(Config):
    """A row of trials.json."""

    id: str
    config: dict[str, Any] = Field(description="the sampled keys and their values")
    samples_seen: int = 0
    status: Status
    val: dict[str, float] = Field(
        {}, description="newest figures of the validation images; what is not finite is left out"
    )
    reason: str | None = Field(None, description="why it failed, or was stopped")
    test: dict[str, float] | None = Field(None, description="of the best trial only")

    def figure(self, metric: str) -> float:
        """Its newest value of `val/...`; infinity where it has none."""
        return self.val.get(metric.removeprefix("val/"), math.inf)


def read_trial(
    generations: Sequence[Path], trial_id: str, config: dict[str, Any], status: Status, reason: str | None = None
) -> Trial:
    """What the run folders say of a trial; SweepFolder.generations names them. They may lack, or be still written."""
    rows = journal(generations)
    val = {metric.removeprefix("val/"): series[-1][1] for metric in METRICS if (series := finite(rows, metric))}
    samples_seen = max((int(row["samples_seen"]) for row in rows), default=0)
    return Trial(id=trial_id, config=config, samples_seen=samples_seen, status=status, val=val, reason=reason)


def journal(generations: Sequence[Path]) -> list[Row]:
    """The rows of a trial by samples seen; where PBT let it go on from elsewhere, without what it had beyond that."""
    rows: list[Row] = []
    for generation in generations:
        path = RunFolder(generation).journal
        if path.is_file() and (new := read(path)):
            rows = [row for row in rows if row["samples_seen"] < new[0]["samples_seen"]] + new
    return rows


def finite(rows: Sequence[Row], metric: str) -> list[tuple[int, float]]:
    """(samples seen, value) wherever a metric has a finite value."""
    return [(int(row["samples_seen"]), row[metric]) for row in rows if math.isfinite(row.get(metric, math.nan))]


def figures_of_test(generations: Sequence[Path]) -> dict[str, float] | None:
    """Of the newest generation's summary.json; None while it has none."""
    summary = RunFolder(generations[-1]).summary
    if not summary.is_file():
        return None
    test = json.loads(summary.read_text())["test"]
    return {name: test[name] for name in TEST_FIGURES if math.isfinite(test[name])}


def ranked(trials: Sequence[Trial], metric: str) -> list[Trial]:
    """The best first: those that had the whole budget by their figure, then the others that did not fail by how far
    they came and by their figure; those that failed last."""

    def place(trial: Trial) -> tuple[bool, bool, int, float]:
        whole = trial.status == "finished"
        return trial.status == "failed", not whole, 0 if whole else -trial.samples_seen, trial.figure(metric)

    return sorted(trials, key=place)


def best_of(trials: Sequence[Trial], metric: str) -> Trial | None:
    """The first in rank, of those that have ended and have a figure."""
    able = [
        trial
        for trial in trials
        if trial.status in ("finished", "stopped") and metric.removeprefix("val/") in trial.val
    ]
    return next(iter(ranked(able, metric)), None)
