"""A sweep on a Ray cluster of two nodes (`two_hosts.py`), whose trials span both; then one node dies."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from launched import wait_for
from sweeps import FOR_TRIALS, lines_until, search_file, trials
from two_hosts import Host, two_hosts

pytestmark = pytest.mark.ray

RAY = str(Path(sys.executable).with_name("ray"))
TOKEN = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "0" * 64,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
}
SLOW_S = 300.0


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    with two_hosts(tmp_path / "hosts") as both:
        yield both


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for Ray: the names of its sockets may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def node(host: Host, *options: str) -> subprocess.Popen[str]:
    where = ["--node-ip-address", host.address, "--num-cpus", "2"]
    process = host.start([RAY, "start", *options, *where, "--block", "--disable-usage-stats"], **TOKEN)
    lines_until(process, "Ray runtime started")
    return process


def sweep(host: Host, search: Path, *options: str) -> subprocess.Popen[str]:
    address = ["--address", "10.77.0.1:6379", "--out", str(search.parent / "out")]
    return host.start([sys.executable, "-m", "attvae.cli", "sweep", str(search), *address, *options], **TOKEN)


def test_ranks_on_both_nodes_then_a_node_dies(
    digits: Path, tmp_path: Path, short: Path, hosts: tuple[Host, Host]
) -> None:
    a, b = hosts
    node(a, "--head", "--port", "6379", "--include-dashboard", "false", "--temp-dir", str(short))
    node(b, "--address", "10.77.0.1:6379")
    options = {"trials": 2, "parallel": 1, "samples": 1000}

    both = search_file(tmp_path / "both", digits, **options, ranks=4, nodes=2, for_trials=FOR_TRIALS)  # DeepSpeed
    process = sweep(a, both)
    output, _ = process.communicate(timeout=SLOW_S)
    assert process.returncode == 0, output
    assert {row["status"] for row in trials(both).values()} == {"finished"}
    logs = [(tmp_path / f"both/out/launch/t000.rank-{rank}.log") for rank in range(4)]
    assert all(log.exists() for log in logs)
    about = json.loads((tmp_path / "both/out/trials/t000/environment.json").read_text())
    assert about["ranks"] == 4

    dying = search_file(tmp_path / "dying", digits, **options | {"trials": 4, "parallel": 4, "samples": 4000})
    process = sweep(a, dying)
    lines_until(process, " at 1,000 samples")
    assert wait_for(lambda: any("attvae.cli" in p.cmdline() for p in b.python()), 60)
    b.kill()
    output, _ = process.communicate(timeout=SLOW_S)
    assert process.returncode == 0, output
    assert "starts again" in output
    assert [row["status"] for row in trials(dying).values()] == ["finished"] * 4
    assert {row["samples_seen"] for row in trials(dying).values()} == {4000}
