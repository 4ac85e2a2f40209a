"""A Ray cluster of one node, as a user starts it."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from sweeps import lines_until


@contextmanager
def ray_head(**environment: str) -> Iterator[str]:
    """Its address; it has two processors."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # the names of its sockets may have 107 bytes
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray = str(Path(sys.executable).with_name("ray"))
    process = subprocess.Popen(
        [ray, "start", "--head", "--block", "--port", str(port), "--node-ip-address", "127.0.0.1", "--num-cpus", "2",
         "--include-dashboard", "false", "--temp-dir", str(folder)],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    try:
        lines_until(process, "Ray runtime started")
        yield f"127.0.0.1:{port}"
    finally:
        everybody = [*psutil.Process(process.pid).children(recursive=True), process]
        for each in everybody:
            try:
                each.kill()
            except (psutil.Error, ProcessLookupError):
                continue
        process.wait()
        shutil.rmtree(folder)
