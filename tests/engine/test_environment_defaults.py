"""Which variables are set, and that torch knows them."""

import os
import socket
from pathlib import Path

import psutil
import pytest
import torch

from attvae.engine.environment_defaults import interface_towards, set_environment_defaults

NOWHERE = "192.0.2.1"
"""An address for documentation (RFC 5737): reached by the default route, if by any. Nothing is sent."""


def environment(monkeypatch: pytest.MonkeyPatch, run: Path, **given: str) -> dict[str, str]:
    """What becomes of an environment that has nothing else."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", given)
        set_environment_defaults(run)
    return given


def default_interface() -> str:
    """The kernel's own table, /proc/net/route: interface, destination, ..."""
    routes = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    found = [route[0] for route in routes if route[1] == "00000000"]
    if not found:
        pytest.skip("this machine has no default route")
    return found[0]


def test_torch_knows_the_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    default_interface()
    names = environment(monkeypatch, tmp_path, MASTER_ADDR=NOWHERE).keys() - {"MASTER_ADDR"}
    assert names == {
        "TORCH_NCCL_DUMP_ON_TIMEOUT",
        "TORCH_FR_DUMP_TEMP_FILE",
        "GLOO_SOCKET_IFNAME",
        "NCCL_SOCKET_IFNAME",
        "TRITON_CACHE_DIR",
        "TORCH_EXTENSIONS_DIR",
    }
    torch_files = [
        "lib/libtorch_cpu.so",
        "include/torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp",
        "utils/cpp_extension.py",
        "_inductor/runtime/cache_dir_utils.py",
    ]
    read = b"".join((Path(torch.__file__).parent / file).read_bytes() for file in torch_files)
    assert [name for name in names if name.encode() not in read] == []


def test_the_interface_is_that_of_the_route(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = default_interface()
    found = environment(monkeypatch, tmp_path, MASTER_ADDR=NOWHERE)
    assert found["GLOO_SOCKET_IFNAME"] == expected
    assert found["NCCL_SOCKET_IFNAME"] == f"={expected}"


def test_a_host_finds_its_own_interface_by_its_own_address() -> None:
    """So it is for the first rank, whose route to itself is the loopback."""
    name = default_interface()
    [address] = [each.address for each in psutil.net_if_addrs()[name] if each.family == socket.AF_INET]
    assert interface_towards(address) == name


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "no-such-host.invalid"])
def test_on_one_host_or_without_a_way_nothing_is_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str
) -> None:
    found = environment(monkeypatch, tmp_path, MASTER_ADDR=host)
    assert not [name for name in found if "SOCKET" in name]


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = {
        "MASTER_ADDR": NOWHERE,
        "GLOO_SOCKET_IFNAME": "ib0",
        "NCCL_SOCKET_IFNAME": "ib0",
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
        "TORCH_FR_DUMP_TEMP_FILE": "/scratch/trace-",
        "TRITON_CACHE_DIR": "/scratch/triton",
        "TORCH_EXTENSIONS_DIR": "/scratch/extensions",
    }
    assert environment(monkeypatch, tmp_path, **mine) == mine


def test_files_of_a_run_and_of_a_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    node, run = tmp_path / "tmp", tmp_path / "run"
    node.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(node))
    found = environment(monkeypatch, run)
    assert found["TORCH_FR_DUMP_TEMP_FILE"] == str(run / "nccl-rank-")
    assert not run.exists()
    [cache] = node.iterdir()
    assert cache.stat().st_mode & 0o777 == 0o700
    assert Path(found["TRITON_CACHE_DIR"]).parent == Path(found["TORCH_EXTENSIONS_DIR"]).parent == cache


def test_a_cache_folder_of_somebody_else_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    found = environment(monkeypatch, tmp_path / "run")
    assert not [name for name in found if name.endswith("_DIR")]
