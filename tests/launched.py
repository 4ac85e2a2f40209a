"""The command as a user starts it, in processes of its own, and what becomes of them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from spawn import free_port

from attvae.tracking.jsonl import read

REPOSITORY = Path(__file__).parent.parent
TINY = ["configs/test/tiny.yaml"]
PLAIN = "engine.name=plain"
"""For runs whose engine does not matter: to import DeepSpeed takes seconds in each rank."""


def command(digits: Path, out: Path, *overrides: str) -> list[str]:
    """`attvae train` on one rank."""
    return [sys.executable, "launch/train.py", *arguments(digits, out, *overrides)]


def deepspeed_command(digits: Path, out: Path, *overrides: str) -> list[str]:
    """`deepspeed launch/train.py` on two ranks."""
    launcher = [str(Path(sys.executable).with_name("deepspeed")), "--quiet", "--num_gpus", "2"]
    address = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    return [*launcher, *address, "launch/train.py", *arguments(digits, out, *overrides)]


def arguments(digits: Path, out: Path, *overrides: str) -> list[str]:
    """Without MLflow, which takes seconds of each run, unless the overrides ask for it."""
    return [*TINY, f"data.path={digits}", "tracking.mlflow=false", *overrides, "--out", str(out)]


def in_mlflow(folder: Path) -> list[str]:
    """Overrides for runs that MLflow gets, in files of this folder."""
    store = [f"tracking.uri=sqlite:///{folder}/mlflow.db", f"tracking.artifacts={folder}/artifacts"]
    return ["tracking.mlflow=true", *store]


def start(command: list[str], **environment: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **environment}
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def start_ranks(command: list[str], ranks: int, **environment: str) -> list[subprocess.Popen[str]]:
    """The command on several ranks, without a launcher that watches over them."""
    port = str(free_port())
    together = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    return [
        start(command, RANK=str(rank), LOCAL_RANK=str(rank), MASTER_PORT=port, **together, **environment)
        for rank in range(ranks)
    ]


def run(command: list[str], expected: int = 0, **environment: str) -> str:
    """What it printed."""
    process = start(command, **environment)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == expected, output
    return output


def processes_of(out: Path) -> list[psutil.Process]:
    """Every living process whose command names the run folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(out) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def result(out: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """The summary and the journal without what depends on the clock."""
    summary = json.loads((out / "summary.json").read_text())
    del summary["wall_s"]
    rows = [
        {k: v for k, v in row.items() if k != "time" and not k.startswith(("perf/", "system/"))}
        for row in read(out / "metrics.jsonl")
    ]
    return summary, rows


def wait_for(condition: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False
