"""How the ranks of a run find each other, agree, and end together."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from attvae.engine.phases import Phases

T = TypeVar("T")

TIMEOUT = timedelta(minutes=10)
POLL_S = 0.5


def rank_from_environment() -> tuple[int, int]:
    """(rank, world size) as every launcher announces them; (0, 1) without a launcher."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def device_of_this_rank() -> torch.device:
    """A GPU where there are any; DS_ACCELERATOR=cpu in the environment keeps a run off them."""
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


class FailedOnAnotherRankError(RuntimeError):
    """Another rank has raised, and reports, the error that ends this rank too."""


@dataclass(frozen=True)
class World:
    """The ranks of this run, seen from one of them."""

    rank: int
    size: int
    device: torch.device
    phases: Phases = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "phases", Phases(self.device))

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the ranks; `x` itself is not changed."""
        total = x.to(self.device, copy=True)
        if self.size > 1:
            dist.all_reduce(total)
        return total

    def agreed(self, value: float) -> float:
        """The mean over the ranks of what should be one value: the same to the last bit on all of them."""
        if self.size == 1:
            return value
        return float(self.sum(torch.tensor(value, dtype=torch.float64))) / self.size

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def gather(self, value: T) -> list[T]:
        """The value of each rank, on all ranks; plain values of our own only. Collective."""
        values: list[T] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, on all ranks. Collective.

        Only plain values of our own ranks travel this way, never anything read from a file.

        Raises:
            FailedOnAnotherRankError: on the other ranks, when `make` raised on rank 0.
        """
        if self.size == 1:
            return make()
        outcome: list[tuple[bool, T | None]] = [(False, None)]
        failure: Exception | None = None
        if self.rank == 0:
            try:
                outcome = [(True, make())]
            except Exception as error:
                failure = error
        dist.broadcast_object_list(outcome, src=0)
        if failure is not None:
            raise failure
        succeeded, value = outcome[0]
        if not succeeded:
            raise FailedOnAnotherRankError("rank 0 says why")
        return value  # type: ignore[return-value]

    def all_or_none(self, make: Callable[[], T]) -> T:
        """What `make` returns on this rank, once it has succeeded on all. Collective.

        Raises:
            FailedOnAnotherRankError: where `make` raised on some rank; the first of those raises its error itself.
        """
        if self.size == 1:
            return make()
        failure: Exception | None = None
        try:
            value = make()
        except Exception as error:
            failure = error
        failed = torch.zeros(self.size, dtype=torch.int32)
        failed[self.rank] = failure is not None
        if not (ranks := self.sum(failed).nonzero().flatten().tolist()):
            return value
        if failure is not None and ranks[0] == self.rank:
            raise failure
        raise FailedOnAnotherRankError(f"rank {ranks[0]} says why")


def join(patience_s: float = 0) -> World:
    """Joins the process group that the launcher's environment describes, or makes one of a single process.

    Args:
        patience_s: how much longer than usual ranks wait for each other.
    """
    rank, size = rank_from_environment()
    if "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1")))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))
    device = device_of_this_rank()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if size > 1:
        dist.init_process_group(backend, timeout=TIMEOUT + timedelta(seconds=patience_s))
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    return World(rank, size, device)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def end_with_launcher() -> None:
    """Ends this process soon after the launcher that started it: a re-run must never meet an orphan that writes.

    Without a launcher (no RANK in the environment) there is nothing to follow: a shell may close, the run goes on.
    The `deepspeed` command is two processes, a runner and a per-node launcher, and either can be killed alone.
    """
    if "RANK" not in os.environ:
        return
    watched = {os.getpid(): os.getppid()}
    if b"deepspeed.launcher.launch" in _command_line(os.getppid()):
        runner = _parent(os.getppid())
        if runner == 1 and b"deepspeed" not in _command_line(1):
            _end("the launcher of this rank is gone")
        if runner is not None:
            watched[os.getppid()] = runner

    def watch() -> None:
        while all(_parent(child) == parent for child, parent in watched.items()):
            time.sleep(POLL_S)
        _end("the launcher of this rank is gone")

    threading.Thread(target=watch, name="end-with-launcher", daemon=True).start()


def _end(reason: str) -> None:
    try:
        print(f"attvae: {reason}: ending", file=sys.stderr, flush=True)
    finally:
        os.kill(os.getpid(), signal.SIGKILL)


def _parent(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[1])


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
