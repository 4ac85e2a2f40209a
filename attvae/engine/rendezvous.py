"""How the ranks of a run find each other, agree, and end together."""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from attvae.engine.config import Device
from attvae.engine.phases import Phases
from attvae.engine.stop import REASONS, StopRequest, StopRequestedError

T = TypeVar("T")

MEET_S = 600.0
"""How long the first rank that is there waits for the last, whose host may be unreachable."""

POLL_S = 0.5

ANSWER_S = 10.0
"""A store that is there answers a newcomer in less, also where a thousand come at once."""


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
    """Another rank has raised, and reports, the error that ends this rank too.

    Attributes:
        bad_input: whether that is a ValueError: the exit code is the same on all ranks.
    """

    known_to_all = True

    def __init__(self, rank: int, *, bad_input: bool) -> None:
        super().__init__(f"rank {rank} says why")
        self.bad_input = bad_input


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
        outcome: list[tuple[int, T | None]] = [(_SUCCEEDED, None)]
        failure: Exception | None = None
        if self.rank == 0:
            try:
                outcome = [(_SUCCEEDED, make())]
            except Exception as error:
                failure = error
                outcome = [(_kind(error), None)]
        self.phases.entered += 1
        if self.size > 1:
            dist.broadcast_object_list(outcome, src=0)
        if failure is not None:
            raise _known_to_all(failure)
        how, value = outcome[0]
        if how != _SUCCEEDED:
            raise FailedOnAnotherRankError(0, bad_input=how == _BAD_INPUT)
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
        told[self.rank] = _SUCCEEDED if failure is None else _kind(failure)
        if asked is not None:
            told[self.size + REASONS.index(asked)] = 1
        failed, reasons = self.sum(told).cpu().split([self.size, len(REASONS)])
        if failure is not None and not failed[: self.rank].any():
            raise _known_to_all(failure)
        if failed.any():
            first = int(failed.nonzero()[0])
            raise FailedOnAnotherRankError(first, bad_input=int(failed[first]) == _BAD_INPUT)
        if reasons.any():
            raise StopRequestedError(REASONS[int(reasons.nonzero()[0])])
        return value


_SUCCEEDED, _FAILED, _BAD_INPUT = range(3)


def _kind(error: Exception) -> int:
    return _BAD_INPUT if isinstance(error, ValueError) else _FAILED


def _known_to_all(error: Exception) -> Exception:
    error.known_to_all = True  # type: ignore[attr-defined]
    return error


def is_known_to_all(error: Exception) -> bool:
    """Whether all ranks end with this error, as they have agreed; otherwise the others do not know of it."""
    return getattr(error, "known_to_all", False)


def join(stop: StopRequest | None = None, patience_s: float = 600, device: Device = "auto") -> World:
    """Meets the other ranks, and connects with them: what `meet` and `connect` do, and raise."""
    world = meet(stop, patience_s, device)
    connect(world, patience_s)
    return world


def meet(stop: StopRequest | None = None, patience_s: float = 600, device: Device = "auto") -> World:
    """Finds the ranks that the launcher's environment describes, or makes a world of a single process.

    Args:
        stop: what the ranks will agree on beside their work.
        patience_s: how long a rank waits here for another, unless that is longer than MEET_S.
        device: `engine.device`.

    Raises:
        ValueError: a rank has no such device; that rank says so, the others end with FailedOnAnotherRankError. Or the
            launcher's environment does not say where to meet.
        ConnectionError: not all ranks came, or another program has the port at which they meet, or rank 0 has ended
            by now; every rank that came says so.
    """
    rank, size = rank_from_environment()
    if "OMP_NUM_THREADS" not in os.environ:
        ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", "1")))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks_here))
    store: Store = HashStore()
    if size > 1:
        if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
            raise ValueError(
                f"WORLD_SIZE={size} in the environment, but no {' and no '.join(missing)}, where the ranks could meet: "
                "start them with a launcher (launch/README.md), or unset WORLD_SIZE"
            )
        store, rank, size = _meet(rank, timedelta(seconds=min(patience_s, MEET_S)))
    try:
        own = _device_once_all_have_one(device, store, rank, size)
    except dist.DistError as error:
        raise ConnectionError(f"{store_keeper(os.environ['MASTER_ADDR'])} is gone: {error}") from error
    return World(rank, size, own, store, stop or StopRequest())


def store_keeper(host: str) -> str:
    """Whose end is that of the ranks' common store."""
    return f"rank 0 on {host}, or the launcher there, which keeps the ranks' common store,"


def connect(world: World, patience_s: float) -> None:
    """Makes the process group: gloo connects the ranks here, NCCL in the first collective.

    Args:
        patience_s: how long a rank waits for another, here and in a collective.
    """
    backend = "gloo"
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
        backend = "nccl"
    world.phases.entered += 1
    timeout = timedelta(seconds=patience_s)
    dist.init_process_group(backend, store=world.store, rank=world.rank, world_size=world.size, timeout=timeout)


def _meet(rank: int, timeout: timedelta) -> tuple[Store, int, int]:
    here, place = f"rank {rank} on {socket.gethostname()}", f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        if rank != 0:
            wait_for_store(here, place, timeout)
        store, rank, size = next(rendezvous("env://", timeout=timeout))
    except dist.DistError as error:
        if "EADDRINUSE" in str(error):
            raise occupied(here, place) from error
        raise not_met(here, place, str(error)) from error
    # A launcher that restarts its ranks keeps its store.
    store = PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    if rank == 0:
        store.set("size", str(size))
    if int(store.get("size")) != size or store.add(f"joined/{rank}", 1) > 1:
        raise occupied(here, place)  # by the ranks of another run, whose store this is
    return store, rank, size


def wait_for_store(here: str, place: str, timeout: timedelta) -> None:
    """Until rank 0 has opened the store. torch would wait for ever for another program to answer as one.

    Raises:
        ConnectionError: another program has the port, or nobody opens it in time.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    deadline = time.monotonic() + timeout.total_seconds()
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise not_met(here, place, str(error)) from error
            time.sleep(POLL_S)
    found: list[Store] = []

    def ask() -> None:
        with suppress(dist.DistError):
            found.append(
                TCPStore(host, port, is_master=False, timeout=timedelta(seconds=ANSWER_S), wait_for_workers=False)
            )

    asking = threading.Thread(target=ask, name="ask-store", daemon=True)
    asking.start()
    asking.join(2 * ANSWER_S)
    if not found:
        raise occupied(here, place)


def occupied(here: str, place: str) -> ConnectionError:
    return ConnectionError(
        f"{here} finds another program, or another run, at {place}, where the ranks should meet: end it, or choose "
        "another port (--master_port of deepspeed, --master-port of torchrun, MASTER_PORT)"
    )


def not_met(here: str, place: str, why: str) -> ConnectionError:
    return ConnectionError(
        f"{here} has not met the other ranks at {place} ({why}): see that all hosts have started their ranks and "
        "reach this address"
    )


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
    if rank == 0:  # the store ends with it
        store.wait(["all devices read"])
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
    raise FailedOnAnotherRankError(first, bad_input=True)


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective has failed because another rank is gone: gloo raises no error of its own kind."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
