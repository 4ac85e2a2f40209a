"""Runs a function on N gloo ranks, each a process of its own, and hands back what each returned."""

import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import torch


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_on_ranks(function: Callable[..., Any], ranks: int, *args: Any, timeout_s: float = 240) -> list[Any]:
    """The results of `function(*args)` on each rank; it is a module-level function that calls `rendezvous.join`.

    Raises:
        AssertionError: a rank raised (its traceback is the message) or did not end in time; none is left behind.
    """
    # From a process that has imported what takes seconds; but not where the import may have asked CUDA, which no fork
    # can use then.
    context = get_context("spawn" if torch.cuda.is_available() else "forkserver")
    context.set_forkserver_preload(["attvae.train", "deepspeed"])
    port, environment = free_port(), dict(os.environ)
    pipes, processes = [], []
    for rank in range(ranks):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=_rank, args=(sender, rank, ranks, port, environment, function, args), daemon=True
        )
        process.start()
        sender.close()
        pipes.append(receiver)
        processes.append(process)
    try:
        results = []
        for rank, receiver in enumerate(pipes):
            assert receiver.poll(timeout_s), f"rank {rank} did not answer within {timeout_s} s"
            succeeded, value = receiver.recv()
            assert succeeded, f"rank {rank} failed:\n{value}"
            results.append(value)
        return results
    finally:
        for process in processes:
            process.join(5)
            process.kill()
            process.join()


def _rank(
    sender: Connection,
    rank: int,
    ranks: int,
    port: int,
    environment: dict[str, str],
    function: Callable[..., Any],
    args: Any,
) -> None:
    os.environ.clear()
    os.environ.update(
        environment,
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    torch.set_num_threads(1)
    try:
        sender.send((True, function(*args)))
    except BaseException:
        sender.send((False, traceback.format_exc()))
