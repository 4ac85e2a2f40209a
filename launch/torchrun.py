"""`python launch/torchrun.py [torchrun's options] launch/train.py CONFIG`: torchrun with the exit codes of its ranks.

torchrun itself ends with 1 whatever they returned, kills them 30 s after a signal, on SIGUSR1 leaves them alone, and
waits for ever for another program to answer as node 0. Here a signal becomes a request to save, and the exit code says
what to do: 75 run again, 2 mend the input.
"""

import os
import signal
import socket
import sys
from collections.abc import Collection
from datetime import timedelta

from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.api import SignalException, SubprocessContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.utils import _parse_rendezvous_config, parse_rendezvous_endpoint
from torch.distributed.run import main, parse_args

from attvae.engine.rendezvous import MEET_S, not_met, occupied, wait_for_store
from attvae.engine.stop import STOPPED

PORT = 29500
"""Where torchrun's nodes meet, unless they are told otherwise."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def run(options: list[str]) -> int:
    """The exit code."""
    args = parse_args(options)
    host, port = parse_rendezvous_endpoint(args.rdzv_endpoint or f"{args.master_addr}:{args.master_port or PORT}", PORT)
    here, place = f"node {args.node_rank} on {socket.gethostname()}", f"{host}:{port}"
    starts = remember_starts()
    try:
        if args.rdzv_backend == "static" and args.node_rank != 0:
            os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = host, str(port)
            patience_s = float(_parse_rendezvous_config(args.rdzv_conf).get("timeout", MEET_S))
            wait_for_store(here, place, timedelta(seconds=patience_s))
        main(options)
    except ConnectionError as error:
        return no_meeting(error)
    except DistError as error:
        return no_meeting(occupied(here, place) if "EADDRINUSE" in str(error) else not_met(here, place, str(error)))
    except SignalException:
        return code_of_stopped([handler.proc.poll() for handler in starts[-1].subprocess_handlers.values()])
    except ChildFailedError as failed:
        _, first = failed.get_first_failure()
        if first.exitcode == STOPPED:
            return code_of_stopped([each.exitcode for each in failed.failures.values()])
        if first.exitcode != 2:
            print(failed, file=sys.stderr)
        return as_in_a_shell(first.exitcode)
    return 0


def remember_starts() -> list[SubprocessContext]:
    """The ranks of this node, each time that they are started: torchrun forgets what they return after a signal."""
    starts: list[SubprocessContext] = []
    start = SubprocessContext.start

    def remembered(context: SubprocessContext) -> None:
        starts.append(context)
        start(context)

    SubprocessContext.start = remembered  # type: ignore[assignment, method-assign]
    return starts


def no_meeting(error: ConnectionError) -> int:
    print(f"torchrun.py: {error}", file=sys.stderr)
    return 1


def code_of_stopped(codes: Collection[int | None]) -> int:
    """Of a node asked to stop: STOPPED if its ranks did, or had nothing to save yet; else what one of them returned.

    Args:
        codes: as of Popen; None for a rank that could not even be killed.
    """
    if set(codes) == {0}:
        return 0
    good = {0, STOPPED, *(-each for each in SIGNALS)}
    if STOPPED in codes:  # all save or none does: the others were killed later, while they closed the run
        good.add(-signal.SIGKILL)
    return next((as_in_a_shell(code or -signal.SIGKILL) for code in codes if code not in good), STOPPED)


def as_in_a_shell(code: int) -> int:
    return code if code > 0 else 128 - code


if __name__ == "__main__":
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", ",".join(each.name for each in SIGNALS))
    os.environ.setdefault("PET_SHUTDOWN_TIMEOUT", "280")  # schedulers are asked for 300 s
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there are ranks: it ends also what waits in torch
    sys.exit(run(sys.argv[1:]))
