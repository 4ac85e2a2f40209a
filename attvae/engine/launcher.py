"""The processes that started this rank, and what follows from their end. Light, for it is imported first."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

POLL_S = 0.5


def _parent(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[1])


def _started_by() -> dict[int, int]:
    """Processes and their parents: this one's, and its launcher's.

    The `deepspeed` command is two processes, a runner and a per-node launcher, and either can be killed alone. Without
    a launcher (no RANK in the environment) there is nothing to follow: a shell may close, the run goes on.
    """
    if "RANK" not in os.environ:
        return {}
    launcher = os.getppid()
    started = {os.getpid(): launcher}
    try:
        of_deepspeed = b"deepspeed.launcher.launch" in Path(f"/proc/{launcher}/cmdline").read_bytes()
    except OSError:
        of_deepspeed = False
    if of_deepspeed and (runner := _parent(launcher)) is not None:
        started[launcher] = runner
    return started


_STARTED_BY = _started_by()
"""As it was when this process began: by the time that torch is imported, a launcher may have died."""


def follow_launcher(when_gone: Callable[[], None]) -> None:
    """Calls `when_gone`, from a thread, when the launcher that started this process is gone: no orphan goes on."""

    def watch() -> None:
        while all(_parent(child) == parent for child, parent in _STARTED_BY.items()):
            time.sleep(POLL_S)
        when_gone()

    if _STARTED_BY:
        threading.Thread(target=watch, name="follow-launcher", daemon=True).start()
