"""Looks that take all ranks: do they agree, see one folder, have one time, and a fast way to each other?

Every function is collective, and what it returns is of use on rank 0.
"""

import socket
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist

from attvae.agreement import ranks_that_differ, ranks_without, some_of
from attvae.doctor.check import Check
from attvae.doctor.machine import SKEW_S
from attvae.engine.rendezvous import World

LARGE_BYTES = 64 * 2**20
SLOW_GB_PER_S = 1.0
"""GPUs that get less have fallen back to slow sockets."""


def who_is_here(world: World) -> Check:
    """The ranks of each host."""
    hosts = Counter(world.gather(f"{socket.gethostname()} ({world.device.type})"))
    listed = ", ".join(f"{ranks} on {host}" for host, ranks in hosts.items())
    if world.size == 1:
        remedy = "start launch/doctor.py --distributed as launch/train.py will be started"
        return Check("ranks", "warning", f"{listed}: no launcher has started others", remedy)
    return Check("ranks", "ok", listed)


def merged(world: World, here: Sequence[Check]) -> list[Check]:
    """The checks that each rank has made by itself as one list: what is not well, with the ranks that say so."""
    host = socket.gethostname()
    told: dict[str, dict[Check, list[str]]] = defaultdict(lambda: defaultdict(list))
    for rank, (where, checks) in enumerate(world.gather((host, list(here)))):
        for check in checks:
            told[check.name][check].append(f"{rank} on {where}")
    lines = []
    for by_check in told.values():
        bad = {check: ranks for check, ranks in by_check.items() if check.verdict != "ok"}
        if not bad:
            lines.append(next(iter(by_check)))
        for check, ranks in bad.items():
            who = "all ranks" if len(ranks) == world.size > 1 else f"rank {some_of(ranks)}"
            lines.append(check._replace(found=f"{who}: {check.found}"))
    return lines


def sameness(world: World, facts: Mapping[str, str]) -> Check:
    """Versions, sources, configuration and data of all ranks against rank 0's."""
    if complaints := ranks_that_differ(world, facts):
        remedy = "install the same, prepare the same data, and give the same command on all hosts"
        return Check("the same everywhere", "problem", some_of(complaints), remedy)
    return Check("the same everywhere", "ok", "versions, source files, configuration and data")


def shared_folder(world: World, folder: Path) -> Check:
    """Whether all ranks write into one folder. What it makes, it removes."""
    made: list[Path] = []

    def make() -> None:
        made.extend(each for each in (folder, *folder.parents) if not each.exists())
        folder.mkdir(parents=True, exist_ok=True)

    try:
        world.from_first(make)
        complaints = ranks_without(world, folder)
    finally:
        with suppress(OSError):  # others may have put something there
            for each in made:
                each.rmdir()
    world.barrier()  # nobody looks there before it is gone
    if complaints:
        remedy = "choose a folder with --out that all hosts share and may write"
        return Check("shared folder", "problem", some_of(complaints), remedy)
    return Check("shared folder", "ok", f"all ranks write into {folder}")


def clocks(world: World, now: Callable[[], float] = time.time) -> Check:
    """The hosts' clocks against rank 0's."""
    world.gather(None)  # slow once: makes connections
    world.barrier()
    times = world.gather((socket.gethostname(), now()))
    first = times[0][1]
    off = {host: then - first for host, then in times if abs(then - first) > SKEW_S}
    if off:
        listed = [
            f"{host} is {abs(s):.1f} s {'ahead of' if s > 0 else 'behind'} rank 0's host" for host, s in off.items()
        ]
        return Check("clocks", "warning", some_of(listed), "let chrony or ntpd set them: logs and caches compare times")
    return Check("clocks", "ok", f"within {SKEW_S:.0f} s of each other")


def all_reduce(world: World) -> Check:
    """How fast the ranks add up a large tensor, and a single number; the best of some tries.

    The rate is what each rank sends, and receives, in a ring: 2 (ranks - 1) / ranks of the tensor.
    """
    if world.size == 1:
        return Check("all-reduce", "ok", "nothing to send")
    large_s = _fastest(world, LARGE_BYTES // 4, 5)
    small_s = _fastest(world, 1, 20)
    return judged(large_s, small_s, world.size, world.device.type)


def judged(large_s: float, small_s: float, ranks: int, kind: str) -> Check:
    """The check of these times.

    Args:
        large_s: seconds for LARGE_BYTES.
        small_s: seconds for one number.
        kind: of device.
    """
    rate = 2 * (ranks - 1) / ranks * LARGE_BYTES / large_s / 1e9
    found = (
        f"{LARGE_BYTES // 2**20} MiB in {large_s * 1e3:,.1f} ms: {rate:,.2f} GB/s out of each rank; "
        f"a single number in {small_s * 1e6:,.0f} us"
    )
    if kind == "cuda" and rate < SLOW_GB_PER_S:
        remedy = "NCCL_DEBUG=INFO names the transport; see NCCL_SOCKET_IFNAME, NCCL_IB_HCA and the drivers"
        return Check("all-reduce", "warning", found, remedy)
    return Check("all-reduce", "ok", found)


def _fastest(world: World, numbers: int, tries: int) -> float:
    x = torch.zeros(numbers, device=world.device)
    best = float("inf")
    for turn in range(tries + 1):
        dist.barrier()
        _wait_for(world.device)
        started = time.perf_counter()
        dist.all_reduce(x)
        _wait_for(world.device)
        if turn:  # the first one makes connections
            best = min(best, time.perf_counter() - started)
    return best


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
