"""A folder on a node's own disk that keeps shards from far away: one download per node, a bounded size.

All processes of a node share the folder, and nothing but the folder: no server, no memory. It holds

* `<xxh3>-<file>`: a complete shard. Its access time, set at each use, says when it was last needed.
* `<xxh3>-<file>.part`: a shard on its way, of its final size from the start, so that the bound counts it. Whoever
  downloads holds a lock (flock) on it; the kernel frees the lock of a process that dies, so a part without a lock
  is rubbish.
"""

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from attvae.data.shard import Shard

# Other files that lie in the folder are neither counted nor removed.
_OURS = re.compile(r"[0-9a-f]{16}-[^/]+\.tar(\.part)?")
_WAIT_FOR_ROOM_S = 0.1


class ShardCache:
    """The shards that this node keeps.

    Args:
        folder: made when it is first needed.
        gb: bound of all shards in it, complete or on their way, in 10^9 bytes.
    """

    def __init__(self, folder: Path, gb: float) -> None:
        self._folder = folder
        self.bytes = round(gb * 1e9)

    def holds(self, shard: Shard) -> bool:
        """Whether the shard is here, complete."""
        return self._path(shard).exists()

    def open(self, shard: Shard, download: Callable[[int], None]) -> int:
        """A file descriptor, for reading, of the complete shard; the caller closes it.

        It stays good when the shard is removed from the cache to make room for others. Waits for another process or
        thread that is downloading the shard, and takes over where that one dies or fails.

        Args:
            download: writes the shard into the file descriptor that it gets, from position 0; raises where it cannot.

        Raises:
            ValueError: the shard is larger than the cache, or the disk is full.
        """
        while True:
            if (found := self._find(shard)) is not None:
                return found
            with self._part(shard, wait=True) as part:
                # Someone else may have finished, and renamed the part, just before this one was made.
                if part is not None and not self.holds(shard):
                    return self._fill(part, shard, download, wait=True)

    def fetch(self, shard: Shard, download: Callable[[int], None]) -> None:
        """Gets the shard here if nobody else is at it and there is room."""
        with self._part(shard, wait=False) as part:
            if part is not None and not self.holds(shard):
                with suppress(BlockingIOError):
                    os.close(self._fill(part, shard, download, wait=False))

    def _path(self, shard: Shard) -> Path:
        return self._folder / f"{shard.xxh3}-{shard.file}"

    def _part_path(self, shard: Shard) -> Path:
        return self._folder / f"{shard.xxh3}-{shard.file}.part"

    def _find(self, shard: Shard) -> int | None:
        try:
            found = os.open(self._path(shard), os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if os.fstat(found).st_size != shard.bytes:  # a node that lost its power
            os.close(found)
            self._path(shard).unlink(missing_ok=True)
            return None
        _mark_used(found)
        return found

    def _fill(self, part: int, shard: Shard, download: Callable[[int], None], wait: bool) -> int:
        path = self._part_path(shard)
        try:
            self._reserve(part, shard, wait)
            download(part)
            # Opened before anybody can remove it again.
            complete = os.open(path, os.O_RDONLY)
            _mark_used(complete)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ValueError(
                f"no space left for shard {shard.file} ({shard.bytes / 1e9:.2f} GB) in the cache {self._folder}: "
                f"free some, lower data.cache_gb (now {self.bytes / 1e9:g}), or move data.cache to a larger disk"
            ) from None
        with _locked_folder(self._folder):  # or someone who counts might see it under neither name
            path.rename(self._path(shard))
        return complete

    def _reserve(self, part: int, shard: Shard, wait: bool) -> None:
        """Gives the part its size, after as many of the least recently used shards are removed as that takes.

        Raises:
            BlockingIOError: others' downloads take the room, and `wait` is not set.
        """
        if shard.bytes > self.bytes:
            raise ValueError(
                f"shard {shard.file} has {shard.bytes / 1e9:.3f} GB, more than the cache {self._folder} may hold: "
                f"raise data.cache_gb (now {self.bytes / 1e9:g})"
            )
        while True:
            with _locked_folder(self._folder):
                if self._make_room(shard.bytes):
                    os.posix_fallocate(part, 0, shard.bytes)
                    return
            # Downloads that have their room never wait for more, so it comes.
            if not wait:
                raise BlockingIOError(errno.EAGAIN, "no room in the cache")
            time.sleep(_WAIT_FOR_ROOM_S)

    def _make_room(self, size: int) -> bool:
        complete: list[tuple[int, int, str]] = []
        excess = size - self.bytes
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if not _OURS.fullmatch(entry.name):
                    continue
                with suppress(FileNotFoundError):
                    if entry.name.endswith(".part") and _remove_rubbish(entry.path):
                        continue
                    status = entry.stat(follow_symlinks=False)
                    excess += status.st_size
                    if not entry.name.endswith(".part"):
                        complete.append((status.st_atime_ns, status.st_size, entry.path))
        for _, freed, path in sorted(complete):
            if excess <= 0:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            excess -= freed
        return excess <= 0

    @contextmanager
    def _part(self, shard: Shard, wait: bool) -> Iterator[int | None]:
        """The shard's part, locked, for reading and writing; None when someone else has it, or had it meanwhile.

        It is removed at the end, unless it was renamed.
        """
        path = self._part_path(shard)
        if (part := self._lock(path, wait)) is None:
            yield None
            return
        try:
            yield part if _same_file(part, path) else None
        finally:
            if _same_file(part, path):
                path.unlink()
            # A child that was forked meanwhile has the descriptor too: closing it here would not free the lock.
            fcntl.flock(part, fcntl.LOCK_UN)
            os.close(part)

    def _lock(self, path: Path, wait: bool) -> int | None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Whoever looks for rubbish tries each lock; one who does not wait must not meet that.
            with nullcontext() if wait else _locked_folder(self._folder):
                part = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
                try:
                    fcntl.flock(part, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BaseException:
                    os.close(part)
                    raise
                return part
        except BlockingIOError:
            return None
        except OSError as error:
            raise ValueError(
                f"cannot write to the cache {self._folder} ({error.strerror}): choose another folder with data.cache"
            ) from None


def _mark_used(descriptor: int) -> None:
    with suppress(PermissionError):  # another user's file
        os.utime(descriptor, ns=(time.time_ns(), os.fstat(descriptor).st_mtime_ns))


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """One process of the node at a time."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _remove_rubbish(part: str) -> bool:
    """Removes a part whose process is gone."""
    descriptor = os.open(part, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        if _same_file(descriptor, part):
            os.unlink(part)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return True
    finally:
        os.close(descriptor)


def _same_file(descriptor: int, path: Path | str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
