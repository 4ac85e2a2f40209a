"""`launch/torchrun.py` for real: signals save, and the exit codes are those of the ranks. And torchrun as it is."""

import signal
import sys
from functools import partial
from pathlib import Path

import psutil
import pytest
from launched import PLAIN, arguments, processes_of, run, start, wait_for

from attvae.tracking.jsonl import read

OURS = ("launch/torchrun.py",)
AS_IT_IS = ("-m", "torch.distributed.run")


def torchrun(program: tuple[str, ...], digits: Path, out: Path, *overrides: str) -> list[str]:
    """Two ranks on this host."""
    options = ["--standalone", "--nproc-per-node", "2"]
    return [sys.executable, *program, *options, "launch/train.py", *arguments(digits, out, *overrides)]


def has_logged(out: Path, after: int = 0) -> bool:
    rows = read(out / "metrics.jsonl")
    return bool(rows) and rows[-1]["samples_seen"] > after


def rank_1(agent: psutil.Process) -> psutil.Process:
    [found] = [child for child in agent.children() if child.environ().get("RANK") == "1"]
    return found


RANK = """
import os, signal, sys, time
code = sys.argv[1:][int(os.environ["RANK"])]
if code != "unprepared":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(int(code)))
os.write(1, b"ready\\n")  # in one piece
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("ranks", "code"),
    [
        (("75", "75"), 75),
        (("75", "unprepared"), 75),  # ended by the signal
        (("75", "1"), 1),  # has not saved
        (("2", "75"), 2),
        (("0", "0"), 0),
    ],
)
def test_after_a_signal_a_rank_that_failed_is_not_stopped(ranks: tuple[str, str], code: int, tmp_path: Path) -> None:
    program = tmp_path / "rank.py"
    program.write_text(RANK)
    process = start([sys.executable, *OURS, "--standalone", "--nproc-per-node", "2", str(program), *ranks])
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in ranks] == ["ready\n"] * 2
    process.terminate()
    output, _ = process.communicate(timeout=30)
    assert process.returncode == code, output
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_signal_to_torchrun_or_a_rank_saves(digits: Path, tmp_path: Path) -> None:
    """One run, stopped at each start in another way; each goes on from where the one before stopped."""
    out, stopped_at = tmp_path / "run", 0
    for program, to_rank, how, code in [
        (OURS, False, signal.SIGTERM, 75),
        (OURS, False, signal.SIGUSR1, 75),
        (OURS, True, signal.SIGTERM, 75),
        (AS_IT_IS, False, signal.SIGTERM, 1),
        (AS_IT_IS, False, signal.SIGUSR1, -signal.SIGUSR1),  # ends at once itself; the ranks notice
    ]:
        process = start(torchrun(program, digits, out, PLAIN, "train.samples=1000000"))
        assert wait_for(partial(has_logged, out, stopped_at), 90)
        agent = psutil.Process(process.pid)
        (rank_1(agent) if to_rank else agent).send_signal(how)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == code, output
        assert wait_for(lambda: not processes_of(out), 30), "no process is left behind"
        newest = max(int(folder.name) for folder in (out / "checkpoints").iterdir())
        assert newest > stopped_at, output
        stopped_at = newest


@pytest.mark.slow
def test_bad_input_is_2_and_a_killed_rank_its_signal(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    output = run(torchrun(OURS, digits, out, "train.global_batch=99"), expected=2)
    assert output.count("train.global_batch") == 1, "one message"
    assert "Traceback" not in output
    process = start(torchrun(OURS, digits, out, PLAIN, "train.samples=1000000"))
    assert wait_for(partial(has_logged, out), 90)
    rank_1(psutil.Process(process.pid)).kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGKILL, output
    assert wait_for(lambda: not processes_of(out), 30)
