"""A run that is killed again and again, at moments drawn from a fixed seed. `make check-all` sets KILLS=20."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from launched import deepspeed_command, processes_of, result, start, wait_for

from attvae.tracking.jsonl import read

KILLS = int(os.environ.get("KILLS", "6"))
EPOCH = 1400
SAMPLES = 8000 + 800 * KILLS  # more than are trained on between the kills


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_whatever_is_killed_the_result_is_the_same(digits: Path, tmp_path: Path) -> None:
    undisturbed, killed, record = tmp_path / "undisturbed", tmp_path / "killed", tmp_path / "record"
    record.mkdir()
    start_run(digits, undisturbed, record).communicate(timeout=900)
    draw = random.Random(1)
    # A quarter and one more, at least, in the middle of a checkpoint.
    moments = ["saving"] * (1 + KILLS // 4) + draw.choices(["starting", "training", "saving"], k=KILLS)
    moments = draw.sample(moments[:KILLS], KILLS)
    cut_short = 0
    for moment in moments:
        victim = draw.choice(["rank 0", "everything"] if moment == "saving" else VICTIMS)
        process = start_run(digits, killed, record)
        at = begun(killed)
        match moment:
            case "starting":
                time.sleep(draw.uniform(0, 6))
            case "training":
                assert wait_for(lambda: begun(killed) > at, 120), moment  # noqa: B023 - called at once
                time.sleep(draw.uniform(0, 1))
            case "saving":
                wait_closely(lambda: partial(killed), process)
        kill(killed, victim, process)
        process.communicate(timeout=90)
        assert not (killed / "summary.json").exists(), f"killed while {moment}, {victim}: it has finished before"
        cut_short += moment == "saving" and partial(killed)
    assert cut_short >= KILLS // 4
    last = start_run(digits, killed, record)
    output, _ = last.communicate(timeout=900)
    assert last.returncode == 0, output
    assert result(killed) == result(undisturbed)
    assert weights(killed) == weights(undisturbed)
    assert wait_for(lambda: not processes_of(killed), 10), "no process is left behind"
    each_sample_once_an_epoch(record)


VICTIMS = ["rank 0", "rank 1", "deepspeed", "launcher", "everything"]


def start_run(digits: Path, out: Path, record: Path) -> subprocess.Popen[str]:
    options = [f"train.samples={SAMPLES}", "checkpoint.every=500", f"eval.every={SAMPLES // 2}"]
    command = deepspeed_command(digits, out, *options)
    command[command.index("launch/train.py")] = "tests/recording_train.py"
    return start(command, RECORD=str(record))


def begun(out: Path) -> float:
    rows = read(out / "metrics.jsonl")
    return rows[-1]["samples_seen"] if rows else 0


def partial(out: Path) -> bool:
    return any(out.glob("checkpoints/*.tmp"))


def wait_closely(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    wait_for(lambda: not condition(), 60)  # what a killed run has left is removed at the start
    while not condition():
        assert process.poll() is None, "it has finished before"
        time.sleep(0.0002)


def kill(out: Path, victim: str, process: subprocess.Popen[str]) -> None:
    """SIGKILL, at once to what is found first; a victim that is not there yet is replaced by everything."""
    found = processes_of(out)
    named = {part_of(each): each for each in found}
    for each in [named[victim]] if victim in named else found:
        each.send_signal(signal.SIGKILL)
    if not found:
        process.kill()


def part_of(process: psutil.Process) -> str:
    try:
        if "RANK" in (environment := process.environ()):
            return f"rank {environment['RANK']}"
        return "launcher" if "deepspeed.launcher.launch" in process.cmdline() else "deepspeed"
    except psutil.Error:
        return "gone"


def weights(out: Path) -> dict[str, bytes]:
    [newest] = sorted(p for p in (out / "checkpoints").iterdir() if p.name.isdigit())[-1:]
    return {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}


def each_sample_once_an_epoch(record: Path) -> None:
    """By all that the processes have read: whatever was read again came at the same position."""
    pairs = np.concatenate([np.fromfile(path, np.int64).reshape(-1, 2) for path in record.iterdir()])
    at = dict(pairs.tolist())
    assert all(at[position] == sample for position, sample in pairs.tolist())
    assert at.keys() >= set(range(SAMPLES))
    for first in range(0, SAMPLES - EPOCH + 1, EPOCH):
        assert sorted(at[position] for position in range(first, first + EPOCH)) == list(range(EPOCH))
