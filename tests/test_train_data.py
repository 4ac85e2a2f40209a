"""Runs that meet bad or distant data: damaged shards, tars that nobody should make, a store that goes away."""

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from spawn import free_port, run_on_ranks
from test_train import result

from attvae.config import RunConfig, load
from attvae.data import manifest as manifest_module
from attvae.data.plan import Plan
from attvae.train import plan, train
from data_prep.digits import dataset
from data_prep.writer import prepare

TINY = "configs/test/tiny.yaml"
EPOCH, BATCH, SHARD = 1400, 100, 50

# The damage: a shard that is cut within its 21st sample, a flipped bit, a shard that is missing; one in the test split.
CUT, FLIPPED, MISSING = 170, 357, 550
LOST = {*range(CUT, 200), FLIPPED, *range(MISSING, MISSING + SHARD)}
LOST_IN_TEST = SHARD
NO_LEARNING = ("train.lr=1.0e-30", "train.kl_warmup=0")
"""The weights stay as they are, so that a step's loss depends on its images alone."""


def at_sample(folder: Path, split: str, sample: int) -> tuple[Path, int]:
    """The shard of a sample, and where the header of its image begins."""
    path = folder / f"{split}-{sample // SHARD:06d}.tar"
    return path, path.read_bytes().index(f"{sample:09d}.".encode())


def flip(folder: Path, sample: int) -> None:
    """Changes a bit of a training image's pixels (raw) or compressed pixels (PNG), in place."""
    path, offset = at_sample(folder, "train", sample)
    with path.open("r+b") as file:
        file.seek(offset + 512 + 50)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def damage(folder: Path) -> None:
    path, offset = at_sample(folder, "train", CUT)
    os.truncate(path, offset + 512 + 30)
    flip(folder, FLIPPED)
    at_sample(folder, "train", MISSING)[0].unlink()
    at_sample(folder, "test", SHARD)[0].unlink()


def prepared(folder: Path, format: str) -> Path:
    prepare(replace(dataset(), format=format, shard_samples=SHARD), folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`raw` and `png`, sound; `damaged-raw` and `damaged-png`; `flipped`, which only its readers find out."""
    folder = tmp_path_factory.mktemp("data")
    for format in ("raw", "png"):
        shutil.copytree(prepared(folder / format, format), folder / f"damaged-{format}")
        damage(folder / f"damaged-{format}")
    shutil.copytree(folder / "raw", folder / "flipped")
    flip(folder / "flipped", FLIPPED)
    return folder


def overrides(path: Path | str, *more: str) -> list[str]:
    """Of short runs that log each step and look at the images once, at the end."""
    rarely = ("eval.every=1000000", "checkpoint.every=1000000", "evaluate.binarisations=1")
    return [f"data.path={path}", "data.window=200", "train.log_every=100", "tracking.mlflow=false", *rarely, *more]


def configuration(path: Path | str, *more: str) -> RunConfig:
    return load(Path(TINY), overrides(path, *more))


def train_alone(path: Path | str, out: Path, *more: str) -> Path:
    train(plan(configuration(path, "engine.name=plain", *more), 1), out)
    return out


class Case(NamedTuple):
    name: str
    data: str
    more: tuple[str, ...]


class Ended(NamedTuple):
    """How a rank ended."""

    error: str
    seconds: float


CASES = [
    Case("raw", "raw", ("train.samples=2800", *NO_LEARNING)),
    Case(
        "skip-raw", "damaged-raw", ("train.samples=2800", "data.on_damage=skip", "data.skip_limit=0.06", *NO_LEARNING)
    ),
    Case(
        "skip-png",
        "damaged-png",
        ("train.samples=2800", "data.on_damage=skip", "data.skip_limit=0.06", "data.workers=1", *NO_LEARNING),
    ),
    Case("learn", "damaged-raw", ("train.samples=800", "data.on_damage=skip", "data.skip_limit=1")),
    Case("gradient", "damaged-raw", ("train.samples=100", "data.on_damage=skip", "data.skip_limit=1", *NO_LEARNING)),
    Case("limit", "damaged-raw", ("train.samples=2800", "data.on_damage=skip", "data.skip_limit=0.05")),
    Case("raise", "damaged-raw", ("train.samples=2800",)),
    Case("raise-late", "flipped", ("train.samples=2800",)),
    Case("raise-late-workers", "flipped", ("train.samples=2800", "data.workers=1")),
]


def run_cases(folder: str, out: str, ports: list[int]) -> list[Ended]:
    manifest_module.HASHED_BYTES = 0  # as if the data were too large to hash them before the start
    ended = []
    for case, port in zip(CASES, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        started, error = time.monotonic(), ""
        try:
            train(plan(configuration(Path(folder) / case.data, *case.more), 2), Path(out) / case.name)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        ended.append(Ended(error, time.monotonic() - started))
    return ended


class TwoRanks(NamedTuple):
    """What became of the cases on two ranks: the run folders' parent, and how each rank ended by the case's name."""

    out: Path
    ended: dict[str, tuple[Ended, Ended]]


@pytest.fixture(scope="module")
def two_ranks(data: Path, tmp_path_factory: pytest.TempPathFactory) -> TwoRanks:
    out = tmp_path_factory.mktemp("two-ranks")
    ranks = run_on_ranks(run_cases, 2, str(data), str(out), [free_port() for _ in CASES])
    return TwoRanks(out, {case.name: pair for case, *pair in zip(CASES, *ranks, strict=True)})


def visits(samples: int) -> np.ndarray:
    """Which of the first positions of the stream meet a damaged sample."""
    _, ids = Plan([SHARD] * (EPOCH // SHARD), 200, 0).order(np.arange(samples))
    return np.isin(ids, list(LOST))


@pytest.mark.parametrize("format", ["raw", "png"])
def test_a_run_that_skips_ends_with_the_right_counts(two_ranks: TwoRanks, format: str) -> None:
    assert [rank.error for rank in two_ranks.ended[f"skip-{format}"]] == ["", ""]
    summary, rows = result(two_ranks.out / f"skip-{format}")
    sound_summary, sound_rows = result(two_ranks.out / "raw")
    damaged = visits(2800).reshape(-1, BATCH).sum(1)
    assert damaged.sum() == 2 * len(LOST)
    assert 0 < (damaged > 0).sum() < 28, "there are steps of both kinds"
    steps, sound_steps = ([row for row in found if "train/lr" in row] for found in (rows, sound_rows))
    assert [row["data/skipped"] for row in steps] == damaged.cumsum().tolist()
    for row, sound, lost in zip(steps, sound_steps, damaged.tolist(), strict=True):
        assert (row["train/nelbo_nats"] == sound["train/nelbo_nats"]) == (lost == 0)
    assert summary["samples_seen"] == 2800
    assert summary["test"]["images"] == 297 - LOST_IN_TEST
    assert sound_summary["test"]["images"] == 297
    assert summary["val"] == sound_summary["val"]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (
            "limit",
            r"ValueError: \d+ damaged samples were skipped, more than data.skip_limit=0.05 of an epoch of 1400: ",
        ),
        ("raise", r"ValueError: shard \S+/train-000003.tar has \d+ bytes, the manifest says "),
        ("raise-late", r"DamagedError: shard \S+/train-000007.tar, sample 000000357: .npy is not what was written"),
        ("raise-late-workers", r"DamagedError: shard \S+/train-000007.tar, sample 000000357: .npy is not what was "),
    ],
)
def test_all_ranks_stop_within_seconds_and_one_says_why(two_ranks: TwoRanks, case: str, said: str) -> None:
    by_error = sorted(two_ranks.ended[case])
    silent, speaking = by_error if by_error[0].error.startswith("FailedOnAnotherRank") else by_error[::-1]
    assert silent.error.startswith("FailedOnAnotherRankError: rank ")
    assert max(rank.seconds for rank in by_error) < 20
    assert abs(silent.seconds - speaking.seconds) < 2
