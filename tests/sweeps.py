"""Sweeps as a user starts them, and what they leave."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from launched import REPOSITORY

FOR_TRIALS = {"eval.every": 500, "checkpoint.every": 500}

started: list[subprocess.Popen[str]] = []
"""What `start` has started."""


def search_file(folder: Path, digits: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    tree = {
        "base": str(REPOSITORY / "configs/test/tiny.yaml"),
        "overrides": {"data.path": str(digits), "tracking.mlflow": False},
        "for_trials": FOR_TRIALS | {"engine.name": "plain"},
        "space": {"train.lr": {"loguniform": [1e-3, 3e-2]}},
        "samples": 3000,
        "searcher": "random",
        "trials": 3,
        "parallel": 2,
    }
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(tree | changes))
    return file


def start(search: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "attvae.cli", "sweep", str(search), "--out", str(search.parent / "out"), *options],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    started.append(process)
    return process


def run(search: Path, *options: str, expected: int = 0, **environment: str) -> str:
    process = start(search, *options, **environment)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == expected, output
    return output


def lines_until(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdout is not None
    told = []
    for line in process.stdout:
        told.append(line)
        if words in line:
            return
    raise AssertionError("".join(told))


def trials(search: Path) -> dict[str, dict[str, Any]]:
    rows = json.loads((search.parent / "out/trials.json").read_text())
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


def starts(search: Path, trial: str) -> int:
    """How often the trial's training was begun, or gone on with."""
    return len((search.parent / f"out/trials/{trial}/command.txt").read_text().splitlines())
