"""Runs of two ranks with two workers each, through the deepspeed launcher, that meet damaged or distant data."""

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from launched import PLAIN, deepspeed_command, processes_of, result, start, wait_for
from s3_server import S3Server
from test_train_data import EPOCH, LOST, SHARD, damage, flip

from attvae.data.plan import Plan
from attvae.tracking.jsonl import read
from data_prep.digits import Digits, dataset
from data_prep.writer import prepare

pytestmark = pytest.mark.slow

SAMPLES, WINDOW = 4200, 100
SHORT = [
    PLAIN,
    f"data.window={WINDOW}",
    "data.workers=2",
    f"train.samples={SAMPLES}",
    "train.log_every=100",
    "checkpoint.every=1400",
    "eval.every=1000000",
]
SKIP = ["data.on_damage=skip", "data.skip_limit=0.06"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`raw` and `png`; `damaged`, which is PNG."""
    folder = tmp_path_factory.mktemp("data")
    splits = {**dataset().splits, "train": Digits(range(EPOCH))}
    prepare(replace(dataset(), format="raw", splits=splits, shard_samples=SHARD), folder / "raw")
    prepare(replace(dataset(), format="png", splits=splits, shard_samples=SHARD), folder / "png")
    shutil.copytree(folder / "png", folder / "damaged")
    damage(folder / "damaged")
    return folder


def said_of_shards(output: str) -> list[str]:
    """By whichever rank, to end the run."""
    lines = [line for line in output.splitlines() if re.match(r"attvae.*/train-\d+\.tar", line)]
    return [line for line in lines if "skipped: " not in line and "does not answer" not in line]


def test_a_killed_run_skips_and_counts_as_if_it_had_not_been(data: Path, tmp_path: Path) -> None:
    def command(out: str) -> list[str]:
        return deepspeed_command(data / "damaged", tmp_path / out, *SHORT, *SKIP)

    undisturbed = start(command("undisturbed"))
    output, _ = undisturbed.communicate(timeout=240)
    assert undisturbed.returncode == 0, output
    for damaged in (
        "train-000003.tar is cut off after 10 samples",
        "sample 000000180: ",
        "train-000011.tar is missing",
    ):
        assert damaged in output
    killed = start(command("killed"))
    assert wait_for((tmp_path / "killed" / "checkpoints" / "000000001400").exists, 120)
    for process in processes_of(tmp_path / "killed"):
        process.kill()
    killed.communicate()
    assert not (tmp_path / "killed" / "summary.json").exists()
    again = start(command("killed"))
    output, _ = again.communicate(timeout=240)
    assert again.returncode == 0, output
    assert "resumed from" in output
    assert result(tmp_path / "killed") == result(tmp_path / "undisturbed")
    _, ids = Plan([SHARD] * (EPOCH // SHARD), WINDOW, 0).order(np.arange(SAMPLES))
    skipped = np.isin(ids, list(LOST)).reshape(-1, 100).sum(1).cumsum()
    steps = [row for row in result(tmp_path / "killed")[1] if "data/skipped" in row]
    assert [step["data/skipped"] for step in steps] == skipped.tolist()
    assert skipped[-1] == SAMPLES // EPOCH * len(LOST)


def test_damage_during_a_run_ends_all_ranks_within_seconds(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "raw", tmp_path / "raw")
    out = tmp_path / "run"
    process = start(deepspeed_command(tmp_path / "raw", out, *SHORT, "train.samples=10000000"))
    assert wait_for(lambda: read(out / "metrics.jsonl"), 120)
    flip(tmp_path / "raw")
    last, moved = 0, time.monotonic()
    while process.poll() is None:  # the sample comes within an epoch; from the last step on it is a matter of seconds
        if (steps := len(read(out / "metrics.jsonl"))) > last:
            last, moved = steps, time.monotonic()
        time.sleep(0.05)
    output, _ = process.communicate()
    assert time.monotonic() - moved < 20
    assert process.returncode == 2, output
    [message] = said_of_shards(output)
    found = r"shard \S+/train-000007.tar, sample 000000180: .npy is not what was written \(XXH3\)"
    assert re.match(rf"attvae( \(rank 1\))?: {found}$", message)
    assert "Traceback" not in output
    assert wait_for(lambda: not processes_of(out), 10), "no process is left behind"


@pytest.fixture
def server(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with S3Server(data, tmp_path / "requests.log") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def far(server: S3Server, tmp_path: Path, *overrides: str) -> list[str]:
    """With room for 12 of 28 shards."""
    cache = (f"data.cache={tmp_path}/cache", "data.cache_gb=0.0007")
    return deepspeed_command(
        Path("unused"), tmp_path / "far", *SHORT, f"data.path={server.url('raw')}", *cache, *overrides
    )


def test_a_store_that_is_away_for_20_s_changes_nothing(data: Path, server: S3Server, tmp_path: Path) -> None:
    process = start(far(server, tmp_path))
    journal = tmp_path / "far" / "metrics.jsonl"
    assert wait_for(lambda: len(read(journal)) >= 3, 120)
    server.stop()
    time.sleep(15)
    steps = len(read(journal))
    time.sleep(5)
    assert len(read(journal)) == steps < SAMPLES // 100, "the run waits"
    server.start()
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "does not answer" in output
    assert "answers again" in output
    near = start(deepspeed_command(data / "raw", tmp_path / "near", *SHORT))
    output, _ = near.communicate(timeout=240)
    assert near.returncode == 0, output
    assert result(tmp_path / "far") == result(tmp_path / "near")


def test_a_store_that_stays_away_ends_all_ranks(server: S3Server, tmp_path: Path) -> None:
    process = start(far(server, tmp_path, "data.retry_s=3", "train.samples=10000000"))
    assert wait_for(lambda: read(tmp_path / "far" / "metrics.jsonl"), 120)
    server.stop()
    stopped = time.monotonic()
    output, _ = process.communicate(timeout=240)
    assert time.monotonic() - stopped < 40
    assert process.returncode == 1, output
    [message] = said_of_shards(output)
    assert re.match(rf"attvae( \(rank 1\))?: {server.url('raw')}/train-\d+.tar has not answered for 3 s \(", message)
    assert "Traceback" not in output
    assert wait_for(lambda: not processes_of(tmp_path / "far"), 10), "no process is left behind"
