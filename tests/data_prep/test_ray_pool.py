import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from array_images import ArrayImages, array_dataset

from data_prep.dataset import Dataset
from data_prep.writer import prepare

pytestmark = pytest.mark.ray


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["tests", "."]))
    return array_dataset(ArrayImages(np.arange(12 * 4, dtype=np.uint8).reshape(12, 2, 2, 1)))


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster that is started as its users start one, with its token."""
    (tmp_path / "token").write_text(secrets.token_hex(32))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2", "--include-dashboard=false", "--block"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", *options]
    head = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert any("Ray runtime started" in line for line in head.stdout)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_local_cluster_writes_the_same(dataset: Dataset, tmp_path: Path) -> None:
    prepare(dataset, tmp_path / "one")
    prepare(dataset, tmp_path / "two", ray="local")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_errors_are_those_of_one_process(dataset: Dataset, tmp_path: Path) -> None:
    images = ArrayImages(np.zeros((12, 2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match=r'^image (\d+) of test \{"number": \1\}: unequal channel counts: 3 in'):
        prepare(replace(dataset, splits={**dataset.splits, "test": images}), tmp_path, ray="local")


def test_the_command_on_a_running_cluster(cluster: str, tmp_path: Path) -> None:
    def run(address: str, out: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "data_prep", "digits", "--out", tmp_path / out, "--ray", address]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)

    done = run(cluster, "ray")
    assert done.returncode == 0, done.stderr
    from data_prep.digits import dataset

    prepare(dataset(), tmp_path / "here")
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")
