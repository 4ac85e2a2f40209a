"""What torch, NCCL and gloo read from the environment, where the user has not set it."""

import ipaddress
import os
import socket
import tempfile
from pathlib import Path

import psutil


def set_environment_defaults(run: Path) -> None:
    """Sets what is not set, before torch.distributed is used.

    * TORCH_FR_DUMP_TEMP_FILE, TORCH_NCCL_DUMP_ON_TIMEOUT: when NCCL itself finds an error in a collective, each rank's
      flight recorder, which torch keeps running, leaves the last ones as `nccl-rank-<rank>` in the run folder. NCCL's
      own time limit is longer than the watchdog's, which writes that record where ranks hang.
    * GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME: the interface towards the first rank's host. gloo by itself takes the one
      that the host's own name stands for, and that is often the loopback.
    * TRITON_CACHE_DIR, TORCH_EXTENSIONS_DIR: what is compiled stays on the node. Their defaults are in the home folder,
      which nodes often share: a lock that a killed compilation leaves there stops all of them.

    Args:
        run: the run folder, which need not exist yet.
    """
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(run.absolute() / "nccl-rank-"))
    if (address := os.environ.get("MASTER_ADDR")) and (interface := interface_towards(address)):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")  # without "=" it is a prefix
    cache = Path(tempfile.gettempdir()) / f"attvae-{os.getuid()}"
    cache.mkdir(mode=0o700, exist_ok=True)
    if cache.stat().st_uid == os.getuid():  # code is loaded from it
        os.environ.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache / "torch_extensions"))


def interface_towards(host: str) -> str | None:
    """The network interface by which packets to a host leave; None for a loopback, and where there is no way."""
    try:
        family, *_, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)  # finds the route, sends nothing
            own = probe.getsockname()[0].partition("%")[0]
    except OSError:
        return None
    if ipaddress.ip_address(own).is_loopback:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address.partition("%")[0] == own for address in addresses):
            return name
    return None
