"""The ranks of a trial on one machine: ordinary training processes, started, watched and ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from attvae.engine.stop import STOPPED

SAVE_S = 300.0
"""How long ranks that were asked to stop may take to save."""

FAREWELL_S = 30.0
"""How long the other ranks may go on when one has failed: they have something to say, and end by themselves."""

_OF_OTHER_RUNS = ("MLFLOW_RUN_ID", "GROUP_RANK", "ROLE_RANK", "TORCHELASTIC_RUN_ID")


class Part(NamedTuple):
    """The ranks of one machine among all of a trial."""

    first: int
    here: int
    world: int
    master: tuple[str, int]
    """Address and port where all ranks meet."""


class Failure(NamedTuple):
    reason: str
    again: bool
    """Whether the same command may succeed."""


class Ranks:
    """Processes that run one command. They also end, saving, when the process that has started them is gone."""

    def __init__(self, command: Sequence[str], part: Part, cwd: Path, log: Path, environment: dict[str, str]) -> None:
        """
        Args:
            log: what rank N prints is appended to this name and `.rank-N.log`.
            environment: variables beside those of this process.
        """
        self._part = part
        self._logs = [log.with_name(f"{log.name}.rank-{part.first + i}.log") for i in range(part.here)]
        self._said_before = [path.stat().st_size if path.exists() else 0 for path in self._logs]
        self._failed_at: float | None = None
        inherited = {name: value for name, value in os.environ.items() if name not in _OF_OTHER_RUNS}
        self._processes = []
        for i, path in enumerate(self._logs):
            ranked = {
                "RANK": part.first + i,
                "LOCAL_RANK": i,
                "WORLD_SIZE": part.world,
                "LOCAL_WORLD_SIZE": part.here,
                "MASTER_ADDR": part.master[0],
                "MASTER_PORT": part.master[1],
            }
            with path.open("ab") as output:
                self._processes.append(
                    subprocess.Popen(
                        [sys.executable, *command],
                        cwd=cwd,
                        env={**inherited, **environment, **{name: str(value) for name, value in ranked.items()}},
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,  # a group of its own, to be killed with all that it has started
                    )
                )

    def ended(self) -> list[int] | None:
        """The exit codes, once all ranks have ended; one that fails takes the others with it."""
        codes = [process.poll() for process in self._processes]
        ended = [code for code in codes if code is not None]
        if len(ended) == len(codes):
            return ended
        if any(ended):
            self._failed_at = self._failed_at or time.monotonic()
            if time.monotonic() - self._failed_at > FAREWELL_S:
                self.stop(FAREWELL_S)
        return None

    def stop(self, limit_s: float = SAVE_S) -> None:
        """Asks the ranks to save and end; after the limit they are killed."""
        deadline = time.monotonic() + limit_s
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def said(self) -> str:
        """What these ranks have printed."""
        texts = []
        for path, offset in zip(self._logs, self._said_before, strict=True):
            with path.open("rb") as log:
                log.seek(offset)
                texts.append(log.read().decode(errors="replace"))
        return "".join(texts)


def failure(codes: Sequence[int], said: str) -> Failure | None:
    """Why a trial whose ranks have ended so has failed; None: it has not.

    Args:
        codes: exit codes of all its ranks.
        said: what they have printed.
    """
    if not any(codes):
        return None
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    # A rank that fails says why in one line; the ranks that end for its sake may say something after it.
    told = [line for line in lines if line.startswith("attvae")] or lines or ["it said nothing"]
    short = [line for line in lines if "out of memory" in line.lower() or "can't allocate memory" in line]
    if short or any(line.startswith("MemoryError") for line in lines):
        return Failure(f"out of memory: {(short or ['MemoryError'])[-1]}", again=False)
    if diverged := [line for line in told if "training diverged" in line]:
        return Failure(diverged[-1], again=False)
    if killed := [code for code in codes if code < 0]:
        by = signal.Signals(-killed[0]).name
        return Failure(f"a rank was ended by {by}, as a system short of memory also does", again=True)
    if 1 in codes:
        return Failure(told[-1], again=True)
    if 2 in codes:
        return Failure(told[-1], again=False)
    if STOPPED in codes:
        return Failure("its ranks were asked to stop by others than the sweep", again=True)
    return Failure(f"exit codes {', '.join(map(str, codes))}: {told[-1]}", again=True)
