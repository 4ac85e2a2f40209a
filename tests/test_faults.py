"""What a user's cluster does to a run: ranks that hang, fail or die, updates that fail, signals to anything."""

import json
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from launched import (
    PLAIN,
    command,
    deepspeed_command,
    processes_of,
    result,
    run,
    start,
    start_ranks,
    wait_for,
)

from attvae.engine.watchdog import BEAT_S, UNANSWERED_BEATS
from attvae.run_folder import RunFolder
from attvae.tracking.jsonl import read

LONG = "train.samples=1000000"
HANG_S = 15
HOST = socket.gethostname()


def faulty(command: list[str]) -> list[str]:
    return ["tests/faulty_train.py" if part == "launch/train.py" else part for part in command]


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    run(command(digits, out))
    return out


def has_logged(out: Path, after: int = 0) -> bool:
    rows = read(out / "metrics.jsonl")
    return bool(rows) and rows[-1]["samples_seen"] > after


def end(ranks: list[subprocess.Popen[str]], seconds: float) -> list[str]:
    """What each rank printed; all end in time, not with success."""
    try:
        assert wait_for(lambda: all(rank.poll() is not None for rank in ranks), seconds), "a rank is still there"
        outputs = [rank.communicate()[0] for rank in ranks]
        assert all(rank.returncode for rank in ranks), outputs
        return outputs
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


# ------------------------------------------------------------------------------------------------- skips in a row


def test_after_skips_in_a_row_the_run_goes_back_once(finished: Path, digits: Path, tmp_path: Path) -> None:
    """A fault that does not come again: the result is that of a run that never had it."""
    out = tmp_path / "run"
    output = run(faulty(command(digits, out, "train.roll_back_after=4")), FAULT="nan -1 13 4")
    assert "rolled back from 1,600 to 1,000 samples, the next time it stops: 4 updates in a row were skipped" in output
    assert "last gradient norm" in output
    (summary, rows), (undisturbed, sound_rows) = result(out), result(finished)
    assert summary == undisturbed
    assert [row.pop("train/roll_backs") for row in rows if "train/roll_backs" in row] == [0, 0, 1, 1]
    assert [row.pop("train/roll_backs") for row in sound_rows if "train/roll_backs" in row] == [0, 0, 0, 0]
    assert rows == sound_rows


def test_a_second_time_it_stops_with_a_diagnosis(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    output = run(faulty(command(digits, out, "train.roll_back_after=4")), expected=1, FAULT="nan -1 13 1000")
    assert output.count("rolled back from 1,600 to 1,000 samples") == 1
    assert "training diverged a second time: 4 updates in a row were skipped up to sample 1,400" in output
    assert "all parameters finite" in output
    assert "lower train.lr" in output
    assert "Traceback" not in output
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["000000001000"]


def test_divergence_before_any_checkpoint_is_the_end(digits: Path, tmp_path: Path) -> None:
    output = run(command(digits, tmp_path / "run", "train.lr=1e6", "train.roll_back_after=3"), expected=1)
    assert "training diverged and there is no checkpoint to go back to: 3 updates in a row" in output
    assert "Traceback" not in output


# ------------------------------------------------------------------------------------------------ hangs and deaths


@pytest.mark.slow
def test_a_rank_that_hangs_is_named(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ranks = start_ranks(
        faulty(command(digits, out, f"engine.hang_s={HANG_S}", "data.retry_s=1")), 2, FAULT="hang 1 8 1"
    )
    outputs = end(ranks, 90)
    assert any(f"rank 1 on {HOST} is hanging: not moved for" in output for output in outputs), outputs
    stacks = {path.name: path.read_text() for path in (out / "stacks").iterdir()}
    collectives = [json.loads(stacks.pop(f"gloo-rank-000{rank}.json"))["entries"] for rank in range(2)]
    assert stacks.keys() == {"rank-0000.txt", "rank-0001.txt"}
    assert "in happen\n" in stacks["rank-0001.txt"]
    assert "in happen\n" not in stacks["rank-0000.txt"]
    assert len(collectives[0]) == len(collectives[1]) + 1
    assert collectives[0][-1]["profiling_name"] == "gloo:all_reduce"


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_gone_is_named(digits: Path, tmp_path: Path, victim: int, how: signal.Signals) -> None:
    out = tmp_path / "run"
    ranks = start_ranks(command(digits, out, LONG, PLAIN, f"engine.hang_s={HANG_S}", "data.retry_s=1"), 2)
    try:
        assert wait_for(lambda: has_logged(out), 60)
        ranks[victim].send_signal(how)
        survivor = ranks[1 - victim]
        since = time.monotonic()
        [output] = end([survivor], 60)
        assert time.monotonic() - since < (15 if how is signal.SIGKILL else UNANSWERED_BEATS * BEAT_S + 15)
        assert f"rank {victim} on {HOST}" in output
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "victim", "when", "said"),
    [
        ("die", 1, "Watchdog", "rank 1 is gone: no sign of life for 30 s since it met the others"),
        ("hang", 1, "Watchdog", "rank 1 is gone: no sign of life for 30 s since it met the others"),
        ("die", 0, "Watchdog", "rank 0 on 127.0.0.1, or the launcher there, which keeps the ranks' common"),
        ("die", 1, "connect", f"rank 1 on {HOST} is gone: the process has ended (in start)"),
        ("hang", 1, "connect", f"rank 1 on {HOST} is hanging: not moved for {HANG_S + 1} s (in start)"),
        ("die", 1, "_train", f"rank 1 on {HOST} is gone: the process has ended (in start)"),
        ("hang", 1, "_train", f"rank 1 on {HOST} is hanging: not moved for {HANG_S + 1} s (in start)"),
    ],
)
def test_before_the_first_collective(
    digits: Path, tmp_path: Path, kind: str, victim: int, when: str, said: str
) -> None:
    """Where ranks that have met show each other for the first time that they are there."""
    launch = command(digits, tmp_path / "run", f"engine.hang_s={HANG_S}", "data.retry_s=1")
    ranks = start_ranks(faulty(launch), 2, FAULT=f"{kind} {victim} {when} 1")
    try:
        assert wait_for(lambda: ranks[victim].poll() is not None or kind == "hang", 60)
        [output] = end([ranks[1 - victim]], 60)
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert said in output + ranks[victim].communicate()[0], "the first judge to notice says it"
    assert "Traceback" not in output


def test_stacks_of_a_run_that_never_began_do_not_bar_the_way(tmp_path: Path) -> None:
    (tmp_path / "stacks").mkdir()
    RunFolder(tmp_path).claim()


@pytest.mark.slow
def test_a_record_of_collectives_that_blocks_does_not_keep_a_rank(tmp_path: Path) -> None:
    """As NCCL's may, which asks a GPU that perhaps does not answer, and holds Python's lock."""
    program = f"""
import ctypes, pathlib, types
from torch import device
from attvae.engine import watchdog
from attvae.engine.rendezvous import World
watchdog.STACKS_S = 1
watchdog.c10d = types.SimpleNamespace(_dump_fr_trace_json=lambda: ctypes.PyDLL(None).sleep(3600))
watchdog.Watchdog(World(0, 1, device("cpu")), 60, pathlib.Path({str(tmp_path)!r}))._end("over")
"""
    ended = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert ended.returncode == 1
    assert (tmp_path / "rank-0000.txt").read_text().startswith("over\n")


@pytest.mark.slow
def test_a_rank_that_fails_alone_ends_all(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ranks = start_ranks(faulty(command(digits, out, PLAIN)), 2, FAULT="fail 1 8 1")
    outputs = end(ranks, 90)
    assert "RuntimeError: the forward pass is broken" in outputs[1]
    verdict = f"rank 1 on {HOST} failed: RuntimeError: the forward pass is broken"
    assert verdict in (out / "stacks" / "rank-0000.txt").read_text()
    status = json.loads((out / "status.json").read_text())
    assert (status["status"], status["reason"]) == ("FAILED", verdict)


# --------------------------------------------------------------------------------------------------------- signals


def find(out: Path, victim: str) -> psutil.Process:
    """A process of the run by its part: `deepspeed`, `launcher`, `rank 0`, `rank 1`, `worker` (of rank 1)."""
    found = {}
    for process in processes_of(out):
        line = process.cmdline()
        if "RANK" not in (environment := process.environ()):
            found["launcher" if "deepspeed.launcher.launch" in line else "deepspeed"] = process
        elif (parent := process.parent()) is not None and parent.cmdline() == line:
            found["worker"] = process
        else:
            found[f"rank {environment['RANK']}"] = process
    return found[victim]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_signal_to_any_process_saves_the_run(digits: Path, tmp_path: Path) -> None:
    """One run, stopped by a signal to another of its processes at each start: the undisturbed run's result."""
    out, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    options = ("train.samples=12000", "data.workers=1", PLAIN)
    run(deepspeed_command(digits, undisturbed, *options))
    stopped_at = 0
    for victim, how, code in [
        ("rank 1", signal.SIGUSR1, 75),
        ("deepspeed", signal.SIGTERM, -signal.SIGTERM),  # ends at once itself; the ranks notice
        ("launcher", signal.SIGTERM, 1),  # its own code for it
        ("rank 0", signal.SIGTERM, 75),
        ("worker", signal.SIGTERM, 75),
    ]:
        process = start(deepspeed_command(digits, out, *options))
        assert wait_for(partial(has_logged, out, stopped_at), 90)
        find(out, victim).send_signal(how)
        output, _ = process.communicate(timeout=60)
        assert wait_for(lambda: not processes_of(out), 30), "no process is left behind"
        assert process.returncode == code, (victim, output)
        newest = max(int(p.name) for p in (out / "checkpoints").glob("*") if p.name.isdigit())
        assert newest > stopped_at, (victim, output)
        stopped_at = newest
        assert stopped_at < 12000
    run(deepspeed_command(digits, out, *options))
    assert result(out) == result(undisturbed)
