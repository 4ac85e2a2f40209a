"""Work spread over processes of this machine."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_PATIENCE_S = 10.0


def spread(work: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Generator[Result, None, None]:
    """What `work` gives for each task, whichever is done first.

    Each worker receives `work` once, with all that is bound to it. One worker is this process itself. No worker
    outlives this process, however it ends, nor the iteration.

    Raises:
        What `work` raises.
        OSError: a worker was killed.
    """
    if min(workers, len(tasks)) <= 1:
        yield from map(work, tasks)
        return
    context = multiprocessing.get_context("spawn")
    waiting = iter(tasks)
    busy: dict[Connection, SpawnProcess] = {}
    try:
        for task in islice(waiting, workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(work, theirs), daemon=True)
            process.start()
            theirs.close()
            busy[ours] = process
            ours.send(task)
        while busy:
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                try:
                    succeeded, answer = connection.recv()
                except EOFError:
                    process = busy[connection]
                    process.join()
                    raise ChildProcessError(
                        f"a worker ended with exit code {process.exitcode} (-9 is often a lack of memory): "
                        f"try again, perhaps with fewer than {workers} workers"
                    ) from None
                if not succeeded:
                    raise answer
                try:
                    connection.send(next(waiting))
                except StopIteration:
                    connection.close()
                    busy.pop(connection).join()
                yield answer
    finally:
        for process in busy.values():
            process.terminate()
        for process in busy.values():
            process.join(_PATIENCE_S)
            process.kill()
            process.join()


def _serve(work: Callable[[Task], Result], connection: Connection) -> None:
    """A worker: answers tasks until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # removing what is half written
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            task: Task = connection.recv()
        except EOFError:
            return
        try:
            connection.send((True, work(task)))
        except Exception as error:
            connection.send((False, error))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
