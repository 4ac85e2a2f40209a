"""A folder that one preparation has to itself."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"
WORK = ".work"


@contextmanager
def alone_in(out: Path) -> Iterator[Path]:
    """Makes the folder and keeps other processes, on any host that shares it, from preparing into it.

    Yields:
        A folder in it for temporary files, not made yet. They stay for the next try where the machine failed.

    Raises:
        ValueError: another process is preparing into it.
        OSError: it cannot be made or written.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / LOCK
    with _locked(path):
        useful = False
        try:
            yield out / WORK
        except (OSError, KeyboardInterrupt):
            useful = True
            raise
        finally:
            if not useful:
                shutil.rmtree(out / WORK, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    while True:
        # lockf works on network file systems too, and a killed process frees it.
        with path.open("w") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"another process is preparing data into {path.parent}: wait for it, or choose another --out"
                ) from None
            if not _is_at(path, file.fileno()):  # its last holder removed the file after it was opened here
                continue
            try:
                yield
            finally:
                path.unlink()
            return


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
