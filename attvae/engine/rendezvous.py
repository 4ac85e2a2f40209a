"""How the ranks of a run find each other, agree, and end together."""

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from attvae.engine.config import Device
from attvae.engine.phases import Phases
from attvae.engine.stop import LAUNCHER_GONE, REASONS, StopRequest, StopRequestedError

T = TypeVar("T")

POLL_S = 0.5


def rank_from_environment() -> tuple[int, int]:
    """(rank, world size) as every launcher announces them; (0, 1) without a launcher."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def kind_of_device(asked: Device = "auto") -> Literal["cuda", "cpu"]:
    """What a run with this `engine.device` computes on. auto: GPUs where there are any; DS_ACCELERATOR=cpu, by which
    the `deepspeed` command does without, keeps it off them.
    """
    if asked != "auto":
        return asked
    return "cuda" if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu" else "cpu"


def device_of_this_rank(asked: Device = "auto") -> torch.device:
    """This rank's own device of that kind.

    Raises:
        ValueError: there is none, or DS_ACCELERATOR says another kind.
    """
    accelerator = os.environ.get("DS_ACCELERATOR")
    if asked != "auto" and accelerator not in (None, asked):
        raise ValueError(
            f"engine.device={asked}, but DS_ACCELERATOR={accelerator} in the environment: unset it, set it to {asked}, "
            "or use engine.device=auto"
        )
    if kind_of_device(asked) == "cpu":
        return torch.device("cpu")
    index, host, gpus = int(os.environ.get("LOCAL_RANK", "0")), socket.gethostname(), torch.cuda.device_count()
    if not gpus:
        why = "torch finds none" if torch.version.cuda else f"torch {torch.__version__} is built without CUDA"
        raise ValueError(
            f"engine.device={asked}, but there is no GPU on {host} ({why}): see whether nvidia-smi lists one and "
            "CUDA_VISIBLE_DEVICES hides none, or use engine.device=cpu with DS_ACCELERATOR=cpu in the environment"
        )
    if index >= gpus:
        raise ValueError(f"{index + 1} ranks or more on {host}, but {gpus} GPUs: start one rank for each GPU")
    return torch.device("cuda", index)


class FailedOnAnotherRankError(RuntimeError):
    """Another rank has raised, and reports, the error that ends this rank too."""


@dataclass(frozen=True)
class World:
    """The ranks of this run, seen from one of them."""

    rank: int
    size: int
    device: torch.device
    store: Store = field(default_factory=HashStore, repr=False, compare=False)
    """What the ranks share beside the process group, and other threads than the main one may use a clone of."""
    stop: StopRequest = field(default_factory=StopRequest, repr=False, compare=False)
    phases: Phases = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "phases", Phases(self.device))

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the ranks; `x` itself is not changed."""
        self.phases.entered += 1
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
        self.phases.entered += 1
        if self.size > 1:
            dist.barrier()

    def gather(self, value: T) -> list[T]:
        """The value of each rank, on all ranks; plain values of our own only. Collective."""
        self.phases.entered += 1
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
        self.phases.entered += 1
        outcome: list[tuple[bool, T | None]] = [(False, None)]
        failure: Exception | None = None
        if self.rank == 0:
            try:
                outcome = [(True, make())]
            except Exception as error:
                failure = error
        if self.size > 1:
            dist.broadcast_object_list(outcome, src=0)
        if failure is not None:
            raise _known_to_all(failure)
        succeeded, value = outcome[0]
        if not succeeded:
            raise FailedOnAnotherRankError("rank 0 says why")
        return value  # type: ignore[return-value]

    def all_or_none(self, make: Callable[[], T]) -> T:
        """What `make` returns on this rank, once it has succeeded on all. Collective.

        Raises:
            FailedOnAnotherRankError: where `make` raised on some rank; the first of those raises its error itself.
            StopRequestedError: on all ranks, where any of them has been asked to stop.
        """
        failure: Exception | None = None
        try:
            value = make()
        except Exception as error:
            failure = error
        asked = self.stop.reason
        told = torch.zeros(self.size + len(REASONS), dtype=torch.int32)
        told[self.rank] = failure is not None
        if asked is not None:
            told[self.size + REASONS.index(asked)] = 1
        failed, reasons = self.sum(told).cpu().split([self.size, len(REASONS)])
        if failure is not None and not failed[: self.rank].any():
            raise _known_to_all(failure)
        if failed.any():
            raise FailedOnAnotherRankError(f"rank {int(failed.nonzero()[0])} says why")
        if reasons.any():
            raise StopRequestedError(REASONS[int(reasons.nonzero()[0])])
        return value


def _known_to_all(error: Exception) -> Exception:
    error.known_to_all = True  # type: ignore[attr-defined]
    return error


def is_known_to_all(error: Exception) -> bool:
    """Whether all ranks end with this error, as they have agreed; otherwise the others do not know of it."""
    return getattr(error, "known_to_all", False) or isinstance(error, FailedOnAnotherRankError | StopRequestedError)


def join(stop: StopRequest | None = None, patience_s: float = 600, device: Device = "auto") -> World:
    """Joins the process group that the launcher's environment describes, or makes one of a single process.

    Args:
        stop: what the ranks will agree on beside their work.
        patience_s: how long a rank waits for another, here and in a collective.
        device: `engine.device`.

    Raises:
        ValueError: a rank has no such device; that rank says so, the others end with FailedOnAnotherRankError.
        ConnectionError: not all ranks came, or rank 0 has no port to meet them at; every rank that came says so.
    """
    rank, size = rank_from_environment()
    if "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1")))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))
    timeout = timedelta(seconds=patience_s)
    store: Store = HashStore()
    if size > 1:
        store, rank, size = _meet(rank, timeout)
    here = _device_once_all_have_one(device, store, rank, size)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    backend = "nccl" if here.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    return World(rank, size, here, store, stop or StopRequest())


def _meet(rank: int, timeout: timedelta) -> tuple[Store, int, int]:
    try:
        return next(rendezvous("env://", timeout=timeout))
    except dist.DistError as error:
        here, place = socket.gethostname(), f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ConnectionError(
            f"rank {rank} on {here} has not met the other ranks at {place} ({error}): see that all hosts have started "
            "their ranks and reach this address, and that no other program has this port"
        ) from error


def _device_once_all_have_one(asked: Device, store: Store, rank: int, size: int) -> torch.device:
    """This rank's device. Ranks with and without a GPU would wait for each other for ever: no process group yet."""
    failure: Exception | None = None
    try:
        device = device_of_this_rank(asked)
        store.set(f"device/{rank}", device.type)
    except ValueError as error:
        failure = error
        store.set(f"device/{rank}", "none")
    found = [store.get(f"device/{other}").decode() for other in range(size)]
    if store.add("devices read", 1) == size:
        store.set("all devices read", "")
    store.wait(["all devices read"])  # the store ends with rank 0
    first = found.index("none") if "none" in found else 0
    if "none" not in found and len(set(found)) > 1:
        failure = ValueError(
            f"engine.device={asked} finds a GPU for {found.count('cuda')} of {size} ranks, none for rank "
            f"{found.index('cpu')}: use engine.device=cuda to hear why, or cpu"
        )
    elif "none" not in found:
        return device
    if rank == first and failure is not None:
        raise _known_to_all(failure)
    raise FailedOnAnotherRankError(f"rank {first} says why")


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def follow_launcher(stop: StopRequest) -> None:
    """Asks this process to stop when the launcher that started it is gone: no orphan goes on for long.

    Without a launcher (no RANK in the environment) there is nothing to follow: a shell may close, the run goes on.
    The `deepspeed` command is two processes, a runner and a per-node launcher, and either can be killed alone.
    """
    if "RANK" not in os.environ:
        return
    watched = {os.getpid(): os.getppid()}
    if b"deepspeed.launcher.launch" in _command_line(os.getppid()):
        runner = _parent(os.getppid())
        if runner == 1 and b"deepspeed" not in _command_line(1):
            stop.request(LAUNCHER_GONE)
            return
        if runner is not None:
            watched[os.getppid()] = runner

    def watch() -> None:
        while all(_parent(child) == parent for child, parent in watched.items()):
            time.sleep(POLL_S)
        stop.request(LAUNCHER_GONE)

    threading.Thread(target=watch, name="follow-launcher", daemon=True).start()


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
