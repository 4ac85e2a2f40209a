"""The ranks of a trial, as processes: what becomes of them, and what their end is taken for."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from launched import wait_for

from attvae.search import ranks
from attvae.search.ranks import Part, Ranks, failure

HERE = Path.cwd()
ALONE = Part(0, 1, 1, ("127.0.0.1", 1))
PAIR = Part(2, 2, 4, ("10.0.0.7", 29500))


def ranks_of(program: str, part: Part, folder: Path) -> Ranks:
    return Ranks(["-c", program], part, HERE, folder / "t000", {})


def codes(of: Ranks) -> list[int]:
    assert wait_for(lambda: of.ended() is not None, 20)
    ended = of.ended()
    assert ended is not None
    return ended


def test_ranks_are_announced_as_launchers_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "that-of-another")
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT MLFLOW_RUN_ID"
    program = f"import os; print(*(os.environ.get(name, '-') for name in {names.split()}))"
    pair = ranks_of(program, PAIR, tmp_path)
    assert codes(pair) == [0, 0]
    assert pair.said() == "2 0 4 2 10.0.0.7 29500 -\n3 1 4 2 10.0.0.7 29500 -\n"


def test_what_is_said_is_that_of_this_start(tmp_path: Path) -> None:
    for word in ("once", "twice"):
        rank = ranks_of(f"print({word!r})", ALONE, tmp_path)
        assert codes(rank) == [0]
        assert rank.said() == f"{word}\n"
    assert (tmp_path / "t000.rank-0.log").read_text() == "once\ntwice\n"


def test_a_rank_that_fails_takes_the_others_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "FAREWELL_S", 0.5)
    program = "import os, sys, time; sys.exit(2) if os.environ['LOCAL_RANK'] == '0' else time.sleep(600)"
    assert codes(ranks_of(program, PAIR, tmp_path)) == [2, -signal.SIGTERM]


def test_a_rank_that_does_not_stop_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    child = "import time; time.sleep(600)"
    program = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True); time.sleep(600)"
    )
    rank = ranks_of(program, ALONE, tmp_path)
    assert wait_for(lambda: rank.said().strip(), 20)
    rank.stop(limit_s=0.5)
    assert rank.ended() == [-signal.SIGKILL]
    assert wait_for(lambda: _is_gone(int(rank.said())), 10)


def test_divergence_and_bad_input_are_final_and_losses_are_not() -> None:
    said = "train 1,000\nattvae: training diverged a second time: 20 updates\n"
    assert failure([1, 1], said) == ("attvae: training diverged a second time: 20 updates", False)
    assert failure([2], "attvae: model.num_layers=0: no\n") == ("attvae: model.num_layers=0: no", False)
    assert failure([1, 2], "attvae (rank 1): the network is gone\n") == ("attvae (rank 1): the network is gone", True)
    assert failure([0, 0], "") is None
    killed = failure([-signal.SIGKILL, 75], "")
    assert killed is not None
    assert killed.again
    assert "SIGKILL" in killed.reason
    stopped = failure([75], "")
    assert stopped is not None
    assert stopped.again


def test_what_torch_says_when_memory_is_short_is_final() -> None:
    allocate = "import torch; torch.empty(2**60, dtype=torch.uint8)"
    done = subprocess.run([sys.executable, "-c", allocate], capture_output=True, text=True, env=dict(os.environ))
    why = failure([done.returncode], done.stderr)
    assert why is not None
    assert not why.again
    assert why.reason.startswith("out of memory")


def _is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
