"""This very command on several ranks of this machine, started, watched and ended together. Light: no torch."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

FAREWELL_S = 15.0
"""How long the other ranks may go on when one has failed: they have something to say, and end by themselves."""

END_S = 5.0
POLL_S = 0.1


def run_on_local_ranks(command: Sequence[str], ranks: int) -> int:
    """Runs a command once for each rank, which a launcher's variables tell who it is; they meet on the loopback.

    The ranks print where this process does. They end with it, however it ends: by themselves where it is killed
    (`attvae.engine.launcher.follow_launcher`).

    Returns:
        0, or the exit code of the rank that failed first: the others are ended then. 1 for one that a signal ended.
    """
    processes: list[subprocess.Popen[bytes]] = []
    with _ended_by_signals():
        try:
            port = _free_port()
            for rank in range(ranks):
                ranked = {
                    "RANK": rank,
                    "LOCAL_RANK": rank,
                    "WORLD_SIZE": ranks,
                    "LOCAL_WORLD_SIZE": ranks,
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                }
                environment = {**os.environ, **{name: str(value) for name, value in ranked.items()}}
                # In sessions of their own: Ctrl-C is for this process, which ends them.
                processes.append(
                    subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)
                )
            return _watch(processes)
        finally:
            _end(processes)


def _watch(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    first_failure: int | None = None
    deadline = 0.0
    while True:
        codes = [process.poll() for process in processes]
        if first_failure is None:
            for rank, code in enumerate(codes):
                if code is not None and code < 0:
                    by = signal.Signals(-code).name
                    print(f"attvae: rank {rank} was ended by {by}: ending the others", file=sys.stderr, flush=True)
                    return 1
                if code:
                    first_failure, deadline = code, time.monotonic() + FAREWELL_S
                    break
        if None not in codes or (first_failure is not None and time.monotonic() > deadline):
            return first_failure or 0
        time.sleep(POLL_S)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + END_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Those that would end this process at once end it in order: the ranks go first."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    heard = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, end) for each in heard}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
