"""The run folder: one run, one folder, one owner."""

import fcntl
import json
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, Literal

from attvae.all_or_nothing import all_or_nothing
from attvae.config import RunConfig, differences, load
from attvae.tracking.protocol import Status
from attvae.tracking.secrets import without_secrets

LOCK_WAIT_S = 20.0
"""How long a predecessor whose launcher or whose other ranks were killed may take to notice."""

STOP_WAIT_S = 900.0
"""How long a predecessor that was asked to stop may take to save."""

DIFF_LENGTH = 1_000_000
"""Characters of git.diff that are kept."""

_STOPPING = "stopping"


class RunFolder:
    """Paths of a run. Nothing is created until `claim`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.deepspeed = path / "deepspeed.json"
        self.checkpoints = path / "checkpoints"
        self.images = path / "images"
        self.journal = path / "metrics.jsonl"
        self.mlflow = path / "mlflow.json"
        self.model = path / "model"
        self.summary = path / "summary.json"
        self.report = path / "report.html"
        self.status = path / "status.json"
        self._lock: IO[str] | None = None

    def is_finished(self, cfg: RunConfig) -> bool:
        """Whether the folder holds the finished run of this configuration.

        Raises:
            ValueError: it does, but its figures, or the configuration, are damaged.
            OSError: they cannot be read.
        """
        of_this = self.summary.is_file() and self.config.is_file() and not differences(load(self.config), cfg)
        return of_this and bool(self.read_summary())

    def read_summary(self) -> dict[str, Any]:
        """
        Raises:
            ValueError: it is damaged.
            OSError: it cannot be read.
        """
        try:
            return json.loads(self.summary.read_text())
        except ValueError as error:
            raise ValueError(
                f"{self.summary} is damaged ({error}): remove it, and `attvae train` evaluates the run again"
            ) from error

    def mlflow_run_id(self) -> str | None:
        """None, too, where mlflow.json cannot be read, as after a power cut: checkpoints have the id as well."""
        with suppress(OSError, ValueError, AttributeError):
            return json.loads(self.mlflow.read_text()).get("run_id")
        return None

    def go_on_in_mlflow(self, run_id: str) -> None:
        """Names the MLflow run of this run, where the folder does not."""
        if self.mlflow_run_id() is None:
            write_json(self.mlflow, {"run_id": run_id})

    def record_status(self, status: Literal["RUNNING"] | Status, reason: str = "") -> None:
        write_json(self.status, {"status": status, "reason": without_secrets(reason), "time": time.time()})

    def is_in_use(self) -> bool:
        """Whether a process owns the folder; not to be asked by that process, whose lock would end."""
        try:
            with (self.path / "lock").open() as lock:
                fcntl.lockf(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except (BlockingIOError, PermissionError):
            return True
        return False

    def claim(self, room: int = 0) -> None:
        """Creates the folder if need be and becomes its owner for as long as this process lives.

        A POSIX record lock: it ends with the process however that ends, and forked loader workers do not inherit it.

        Args:
            room: bytes that must be free on its disk.

        Raises:
            ValueError: the folder cannot be written, its disk is full, or another run owns it.
        """
        try:
            disk = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
            if (free := shutil.disk_usage(disk).free) < room:
                raise ValueError(
                    f"the disk of the run folder {self.path} has {free / 1e6:,.1f} MB free, but a checkpoint takes "
                    f"{room / 1e6:,.1f} MB: make room, or choose another folder with --out"
                )
            found = {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()
            if found - {"stacks"} and "lock" not in found:  # a watchdog leaves stacks also before the folder is claimed
                raise ValueError(f"{self.path} is not empty and no run folder: choose another folder with --out")
            self.images.mkdir(parents=True, exist_ok=True)
            self.checkpoints.mkdir(exist_ok=True)
            self._lock = (self.path / "lock").open("a+")
        except OSError as error:
            raise ValueError(
                f"cannot write the run folder {self.path} ({error.strerror}): choose another with --out"
            ) from error
        started = time.monotonic()
        told = False
        while True:
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError):
                self._lock.seek(0)
                owner = self._lock.read().strip() or "unknown"
                waited = time.monotonic() - started
                if waited > (STOP_WAIT_S if _STOPPING in owner else LOCK_WAIT_S):
                    raise ValueError(
                        f"the run folder {self.path} is in use by another run ({owner}): "
                        "wait for it, end it, or choose another folder with --out"
                    ) from None
                if waited > 1 and not told:
                    print(f"attvae: {self.path} is in use ({owner}): waiting for its end", file=sys.stderr, flush=True)
                    told = True
                time.sleep(0.2)
        self._sign("")

    def stopping(self) -> None:
        """Lets the next owner wait: this one is saving."""
        self._sign(f", {_STOPPING}")

    def _sign(self, what: str) -> None:
        assert self._lock is not None, "only the owner signs"
        self._lock.truncate(0)
        self._lock.write(f"pid {os.getpid()} on {socket.gethostname()}{what}")
        self._lock.flush()

    def describe(self, config_yaml: str, about: Mapping[str, Any]) -> None:
        """Writes what the run is: configuration, command, environment, and how the code differs from its commit.

        Args:
            about: what environment.json says beside versions, machine and git state.
        """
        write_text(self.config, config_yaml)
        with (self.path / "command.txt").open("a") as commands:
            commands.write(without_secrets(shlex.join(sys.argv)) + "\n")
        text = json.dumps({**environment(), **about}, indent=1)
        write_text(self.path / "environment.json", without_secrets(text) + "\n")
        if difference := git_diff():
            write_text(self.path / "git.diff", difference)
        else:
            (self.path / "git.diff").unlink(missing_ok=True)


def environment() -> dict[str, Any]:
    """Versions, machine and git state, as far as they can be known."""
    packages = {}
    for name in ("attvae", "torch", "deepspeed", "webdataset", "mlflow", "numpy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "python": platform.python_version(),
        "packages": packages,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "git": git_state(),
    }


def git_state() -> dict[str, Any]:
    """Commit and dirtiness of the checkout that the running code comes from; empty without one."""
    try:
        return {"commit": _git("rev-parse", "HEAD").strip(), "dirty": bool(_git("status", "--porcelain").strip())}
    except (OSError, subprocess.SubprocessError):
        return {}


def git_diff() -> str:
    """What that checkout has beyond its commit, secrets struck out, DIFF_LENGTH at most; files new to git left out."""
    try:
        found = _git("diff", "--no-ext-diff", "--no-color", "HEAD")
    except (OSError, subprocess.SubprocessError):
        return ""
    if len(found) <= DIFF_LENGTH:
        return without_secrets(found)
    margin = 10_000  # at the cut may be half a secret, which is not known as one
    text = without_secrets(found[: DIFF_LENGTH + margin])
    if len(found) > DIFF_LENGTH + margin:
        text = text[:-margin]
    return f"{text[:DIFF_LENGTH]}\n... {len(found):,} characters in all\n"


def _git(*args: str) -> str:
    return subprocess.run(
        ["git", "-C", str(Path(__file__).parent), *args],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=True,
        timeout=10,
    ).stdout


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    with all_or_nothing(path) as made, made.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")
