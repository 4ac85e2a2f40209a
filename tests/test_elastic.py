"""A run that is killed and goes on elsewhere, on another number of ranks, in another ZeRO stage, in another engine: it
learns what the uninterrupted run learns.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from spawn import run_on_ranks

from attvae import loop
from attvae.config import load
from attvae.data.loader import Batch, train_batches
from attvae.tracking.jsonl import read
from attvae.train import train

BATCH, CHECKPOINT_EVERY, SAMPLES = 60, 300, 1440
RUN = [
    f"train.global_batch={BATCH}",
    f"train.samples={SAMPLES}",
    f"train.log_every={BATCH}",
    f"checkpoint.every={CHECKPOINT_EVERY}",
    f"eval.every={SAMPLES}",
    "tracking.mlflow=false",
]


class Leg(NamedTuple):
    ranks: int
    engine: tuple[str, ...]
    killed_at: int = SAMPLES
    """Samples seen at the start of a step that is not made; some steps after a checkpoint."""


UNINTERRUPTED = Leg(2, ("stage=2",))
LEGS = [
    Leg(2, ("stage=2",), 420),
    Leg(1, ("stage=0", "micro_batch=20"), 660),
    Leg(1, ("name=plain",), 1080),
    Leg(3, ("stage=1",)),
]

Taken = list[tuple[int, int]]
"""(position in the global stream, sample id) of the images of a leg, in the order of their use on one rank."""


def on_rank(digits: str, out: str, leg: Leg, taken: str) -> None:
    """Trains; notes in the folder `taken` what each micro-batch held, for the kill leaves no time for it."""

    def noted(*args: Any) -> Iterator[Batch]:
        with (Path(taken) / os.environ["RANK"]).open("w") as file:
            for batch in train_batches(*args):
                if batch.positions[0] >= leg.killed_at:
                    time.sleep(0.5)  # until the other ranks are here
                    os.kill(os.getpid(), signal.SIGKILL)
                file.writelines(f"{p} {i}\n" for p, i in zip(batch.positions, batch.ids, strict=True))
                file.flush()
                yield batch

    loop.train_batches = noted
    engine = [f"engine.{option}" for option in leg.engine]
    cfg = load(Path("configs/test/tiny.yaml"), [f"data.path={digits}", *RUN, *engine])
    train(cfg, Path(out))


def run(digits: Path, out: Path, leg: Leg, taken: Path) -> list[Taken]:
    """What each rank has taken."""
    taken.mkdir()
    arguments = (str(digits), str(out), leg, str(taken))
    if leg.killed_at < SAMPLES:
        with pytest.raises(EOFError):
            run_on_ranks(on_rank, leg.ranks, *arguments)
    else:
        run_on_ranks(on_rank, leg.ranks, *arguments)
    files = [taken / str(rank) for rank in range(leg.ranks)]
    return [[tuple(map(int, line.split())) for line in file.read_text().splitlines()] for file in files]


def global_batches(ranks: list[Taken]) -> list[set[tuple[int, int]]]:
    """The images of each step: as many from each rank."""
    each = BATCH // len(ranks)
    steps = range(0, len(ranks[0]), each)
    return [{image for taken in ranks for image in taken[first:][:each]} for first in steps]


def losses(out: Path) -> dict[float, float]:
    """By the samples seen."""
    return {row["samples_seen"]: row["train/nelbo_nats"] for row in read(out / "metrics.jsonl") if "train/lr" in row}


@pytest.mark.slow
def test_other_ranks_stages_and_engines_learn_the_same(digits: Path, tmp_path: Path) -> None:
    expected = global_batches(run(digits, tmp_path / "uninterrupted", UNINTERRUPTED, tmp_path / "taken"))
    assert [len(batch) for batch in expected] == [BATCH] * (SAMPLES // BATCH)

    start = 0
    for number, leg in enumerate(LEGS):
        found = global_batches(run(digits, tmp_path / "moved", leg, tmp_path / f"taken-{number}"))
        assert found == expected[start // BATCH : leg.killed_at // BATCH], leg
        start = leg.killed_at // CHECKPOINT_EVERY * CHECKPOINT_EVERY

    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "uninterrupted"), rel=1e-5)
    assert len(losses(tmp_path / "moved")) == SAMPLES // BATCH
    moved, uninterrupted = (
        json.loads((tmp_path / name / "summary.json").read_text())["test"] for name in ("moved", "uninterrupted")
    )
    for name in ("nelbo_nats", "nll_nats", "kl_nats_per_layer", "images"):
        assert moved[name] == pytest.approx(uninterrupted[name], rel=1e-5), name
