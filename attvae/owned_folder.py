"""A folder that one process at a time works in."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def owned(folder: Path, work: str) -> Iterator[None]:
    """Makes the folder if need be and owns it for as long as the block runs; the lock ends with the process, too.

    Args:
        work: what is done in it, for messages, such as "sweep".

    Raises:
        ValueError: another process owns it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError as error:
        raise ValueError(
            f"cannot write the {work}'s folder {folder} ({error.strerror}): choose another with --out"
        ) from error
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(f"another process runs the {work} in {folder}: wait for it, or end it") from None
        yield
