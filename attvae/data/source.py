"""Where a data set lies: in a folder of this machine, or far away behind a cache on this node."""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from attvae.data.remote import Remote
from attvae.data.shard import DamagedError, Shard
from attvae.data.shard_cache import ShardCache

_PREFETCH_THREADS = 4


class Source(Protocol):
    """A folder of shards and their manifest, near or far.

    Usable in forked children and by several threads and processes at once.
    """

    @property
    def address(self) -> str:
        """For messages: without password or token."""
        ...

    def read(self, file: str) -> bytes:
        """The content of a small file.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: access is refused, or the address is no good.
            ConnectionError: a remote source stays silent.
        """
        ...

    def sizes(self, files: Sequence[str]) -> dict[str, int]:
        """The bytes of those of `files` that are there.

        Raises:
            ValueError, ConnectionError: as `read`.
        """
        ...

    def open(self, shard: Shard) -> int:
        """A file descriptor, for reading, of all the bytes of a shard; the caller closes it.

        It stays good, and so does a memory map of it, when the cache drops the shard.

        Raises:
            FileNotFoundError: the source does not have it.
            DamagedError: a remote source holds other bytes than the manifest says.
            ValueError: it has no room in the cache; or as `read`.
            ConnectionError: as `read`.
        """
        ...

    def prefetch(self, shards: Sequence[Shard]) -> None:
        """Says which shards will be needed next, the first one first; returns at once and never fails.

        What an earlier call named and nobody began to fetch is forgotten.
        """
        ...


def open_source(path: str, cache: Path, cache_gb: float, retry_s: float) -> Source:
    """The source at a path of this machine, which is read in place, or at an fsspec address (`s3://bucket/folder`,
    `https://host/folder`; `file:///mount` for a slow mount that is worth a copy).

    Args:
        cache: folder on a disk of this node for the shards of remote sources.
        cache_gb: bound of the cache, in 10^9 bytes.
        retry_s: how long a remote source may stay silent.
    """
    if "://" in path:
        return RemoteFolder(path, ShardCache(cache, cache_gb), retry_s)
    return LocalFolder(Path(path))


class LocalFolder:
    """A folder of this machine, or one that is mounted; a source.

    Whether a shard's bytes are what the manifest says is not looked at here.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def address(self) -> str:
        return str(self._folder)

    def read(self, file: str) -> bytes:
        return (self._folder / file).read_bytes()

    def sizes(self, files: Sequence[str]) -> dict[str, int]:
        found = {}
        for file in files:
            with suppress(FileNotFoundError, NotADirectoryError):
                found[file] = (self._folder / file).stat().st_size
        return found

    def open(self, shard: Shard) -> int:
        return os.open(self._folder / shard.file, os.O_RDONLY)

    def prefetch(self, shards: Sequence[Shard]) -> None:
        for shard in shards:
            with suppress(OSError):
                descriptor = self.open(shard)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(descriptor)


class RemoteFolder:
    """A folder that is far away, whose shards are copied to this node once; a source."""

    def __init__(self, url: str, cache: ShardCache, retry_s: float) -> None:
        self._remote = Remote(url, retry_s)
        self._cache = cache
        # Threads do not survive a fork: each process starts its own.
        self._prefetchers: dict[int, _Prefetcher] = {}

    @property
    def address(self) -> str:
        return self._remote.address

    def read(self, file: str) -> bytes:
        return self._remote.read(file)

    def sizes(self, files: Sequence[str]) -> dict[str, int]:
        return self._remote.sizes(files)

    def open(self, shard: Shard) -> int:
        return self._cache.open(shard, partial(self._download, shard))

    def prefetch(self, shards: Sequence[Shard]) -> None:
        ahead: list[Shard] = []
        room = self._cache.bytes // 2  # or what is fetched ahead pushes out what is in use
        for shard in shards:
            room -= shard.bytes
            if room < 0:
                break
            if not self._cache.holds(shard):
                ahead.append(shard)
        process = os.getpid()
        if ahead and process not in self._prefetchers:
            self._prefetchers[process] = _Prefetcher(self._fetch)
        if process in self._prefetchers:
            self._prefetchers[process].want(ahead)

    def _fetch(self, shard: Shard) -> None:
        # One try: `open` has the patience, and the words.
        self._cache.fetch(shard, partial(self._download, shard, patient=False))

    def _download(self, shard: Shard, target: int, patient: bool = True) -> None:
        for _ in range(2):
            received = self._remote.download(shard.file, shard.bytes, target, patient)
            if received == (shard.bytes, shard.xxh3):
                return
        found = f"{received.bytes} bytes" if received.bytes < shard.bytes else "more bytes"
        if received.bytes == shard.bytes:
            found = f"XXH3 {received.xxh3}"
        raise DamagedError(
            f"shard {self.address}/{shard.file} has {found}, the manifest says {shard.bytes} bytes with XXH3 "
            f"{shard.xxh3} (fetched twice): upload it again from where the data set was prepared"
        )


class _Prefetcher:
    """Threads that fetch what is wanted, in order; they end with the process and hold up nothing."""

    def __init__(self, fetch: Callable[[Shard], None]) -> None:
        self._fetch = fetch
        self._wanted: list[Shard] = []
        self._news = threading.Condition()
        for _ in range(_PREFETCH_THREADS):
            threading.Thread(target=self._run, name="attvae-prefetch", daemon=True).start()

    def want(self, shards: list[Shard]) -> None:
        with self._news:
            self._wanted = shards
            self._news.notify_all()

    def _run(self) -> None:
        while True:
            with self._news:
                while not self._wanted:
                    self._news.wait()
                shard = self._wanted.pop(0)
            with suppress(Exception):  # whoever needs the shard meets the error again
                self._fetch(shard)
