"""Reading any sample of a webdataset tar, at its offset."""

import os
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

# Open files of a process; a shard that is met again is opened again.
OPEN_FILES = 64


class Member(NamedTuple):
    """A file in a tar: its extension without the dot, and where its bytes lie."""

    extension: str
    offset: int
    size: int


class Entry(NamedTuple):
    """A sample in a tar: consecutive members that share a key."""

    key: str
    members: tuple[Member, ...]


class ShardReader:
    """Samples of a list of shards, by place.

    Each shard's headers are read once, and kept for the last `kept` shards that were met.

    Args:
        shards: path and number of samples of each shard.
        kept: shards that the order of reading moves between.
    """

    def __init__(self, shards: Sequence[tuple[Path, int]], kept: int) -> None:
        self._shards = shards
        self._index = lru_cache(maxsize=kept)(self._read_index)
        self._files: OrderedDict[int, int] = OrderedDict()

    def read(self, shard: int, index: int) -> dict[str, object]:
        """A sample in webdataset's form: `__key__`, `__url__`, and the bytes of each member under its extension.

        Raises:
            ValueError: the shard is missing, damaged, or not what the manifest says.
        """
        path, _ = self._shards[shard]
        key, members = self._index(shard)[index]
        sample: dict[str, object] = {"__key__": key, "__url__": str(path)}
        # Members of a sample are neighbours: one read fetches them all.
        first = members[0].offset
        length = members[-1].offset + members[-1].size - first
        content = os.pread(self._open(shard), length, first)
        if len(content) != length:
            raise ValueError(f"shard {path} ends within sample {key}: prepare the data again")
        for extension, offset, size in members:
            sample[extension] = content[offset - first : offset - first + size]
        return sample

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def _read_index(self, shard: int) -> list[Entry]:
        path, samples = self._shards[shard]
        entries = read_index(path)
        if len(entries) != samples:
            raise ValueError(
                f"shard {path} holds {len(entries)} samples, the manifest says {samples}: prepare the data again"
            )
        return entries

    def _open(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
        else:
            if len(self._files) >= OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard] = os.open(self._shards[shard][0], os.O_RDONLY)
        return self._files[shard]


def read_index(path: Path) -> list[Entry]:
    """The samples of a tar, in order.

    Raises:
        ValueError: the tar is missing, damaged, or has members that are no plain files or point out of the tar.
    """
    entries: list[Entry] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                stem, _, extension = name.name.partition(".")
                if not member.isreg() or member.issparse() or name.is_absolute() or ".." in name.parts:
                    raise ValueError(f"shard {path}: member {member.name!r} is not a plain file inside the tar")
                if not stem or not extension:
                    raise ValueError(f"shard {path}: member {member.name!r} is not named KEY.EXTENSION")
                key = str(name.parent / stem)
                found = Member(extension.lower(), member.offset_data, member.size)
                if not entries or entries[-1].key != key:
                    entries.append(Entry(key, (found,)))
                elif any(found.extension == other.extension for other in entries[-1].members):
                    raise ValueError(f"shard {path}: sample {key} has two members .{found.extension}")
                else:
                    entries[-1] = Entry(key, (*entries[-1].members, found))
    except FileNotFoundError:
        raise ValueError(f"shard {path} is missing: prepare the data again") from None
    except tarfile.TarError as error:
        raise ValueError(f"shard {path} is damaged ({error}): prepare the data again") from None
    return entries
