"""Reading any sample of a webdataset tar, at its offset, through a memory map."""

import mmap
import os
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import xxhash

from attvae.data.manifest import CHECKSUM_GROUP
from attvae.data.shard import DamagedError

# Shards that a process holds open at most. A shard that is met again is opened, and its headers are read, again.
OPEN_SHARDS = 256
BLOCK = tarfile.BLOCKSIZE


class Member(NamedTuple):
    """A file in a tar: its extension without the dot, where its bytes lie, and their XXH3 if the tar knows it."""

    extension: str
    offset: int
    size: int
    xxh3: str | None


class Entry(NamedTuple):
    """A sample in a tar: consecutive members that share a key."""

    key: str
    members: tuple[Member, ...]


class OpenShard:
    """An open shard: its bytes, and on demand its samples.

    Args:
        name: for messages.
        file: an open file descriptor, which stays the caller's.
        samples: as many as the manifest says.

    Raises:
        DamagedError: the file is empty.
    """

    def __init__(self, name: str, file: int, samples: int) -> None:
        self.name = name
        self.samples = samples
        try:
            self.content = mmap.mmap(file, 0, prot=mmap.PROT_READ)
        except ValueError:
            raise DamagedError(f"shard {name} is empty: prepare the data again") from None
        self._index: tuple[list[Entry], str] | None = None

    def index(self) -> tuple[list[Entry], str]:
        """The samples up to where the shard is damaged, and what is wrong there ("" for nothing)."""
        if self._index is None:
            self._index = _index(self.content)
        return self._index

    def first(self) -> tuple[list[Member], int] | None:
        """The members of the first sample, and the bytes from its beginning to that of the next; None if damaged."""
        members: list[Member] = []
        key = None
        try:
            for name, offset, size, xxh3 in _members(self.content):
                found, extension = _key(name)
                if key not in (None, found):
                    break
                key = found
                members.append(Member(extension, offset, size, xxh3))
        except (tarfile.TarError, _RefusedError):
            return None
        if not members:
            return None
        return members, _end(members[-1].offset, members[-1].size)

    def read(self, index: int) -> dict[str, object]:
        """A sample in webdataset's form: `__key__`, `__url__`, and the bytes of each member under its extension.

        Raises:
            DamagedError: the shard does not hold the sample, or not as it was written.
        """
        entries, damage = self.index()
        if index >= len(entries) or len(entries) > self.samples:
            damage = damage or f"holds {len(entries)} samples, the manifest says {self.samples}"
            raise DamagedError(f"shard {self.name} {damage}: prepare the data again")
        key, members = entries[index]
        sample: dict[str, object] = {"__key__": key, "__url__": self.name}
        for extension, offset, size, xxh3 in members:
            content = self.content[offset : offset + size]
            if xxh3 is not None and xxhash.xxh3_64_hexdigest(content) != xxh3:
                raise DamagedError(f"shard {self.name}, sample {key}: .{extension} is not what was written (XXH3)")
            sample[extension] = content
        return sample


class OpenShards:
    """The shards of a split, opened when they are met; the last `kept` of them stay open.

    Args:
        open_file: gives a file descriptor of a shard, by its number, which this closes; may raise FileNotFoundError.
        shards: the name, for messages, and the number of samples of each.
        kept: shards that the order of reading moves between.
    """

    def __init__(self, open_file: Callable[[int], int], shards: Sequence[tuple[str, int]], kept: int) -> None:
        self._open_file = open_file
        self._shards = shards
        self._kept = min(kept, OPEN_SHARDS)
        self._opened: OrderedDict[int, OpenShard | DamagedError] = OrderedDict()

    def __getitem__(self, number: int) -> OpenShard:
        """
        Raises:
            DamagedError: the shard is missing or cannot be read.
        """
        if number in self._opened:
            self._opened.move_to_end(number)
        else:
            if len(self._opened) >= self._kept:
                self._opened.popitem(last=False)
            self._opened[number] = self._open(number)
        shard = self._opened[number]
        if isinstance(shard, DamagedError):
            raise shard
        return shard

    def name(self, number: int) -> str:
        return self._shards[number][0]

    def _open(self, number: int) -> OpenShard | DamagedError:
        """An error is an answer too: a missing shard is asked for once, not once a sample."""
        name, samples = self._shards[number]
        try:
            file = self._open_file(number)
        except FileNotFoundError:
            return DamagedError(f"shard {name} is missing: prepare the data again")
        except PermissionError as error:
            return DamagedError(f"shard {name} cannot be read: {error.strerror}")
        except DamagedError as error:
            return error
        try:
            return OpenShard(name, file, samples)
        except DamagedError as error:
            return error
        finally:
            os.close(file)


def read_index(path: Path) -> list[Entry]:
    """The samples of a tar, in order.

    Raises:
        DamagedError: the tar is missing, damaged, or has members that are no plain files or point out of the tar.
    """
    shard = OpenShards(lambda _: os.open(path, os.O_RDONLY), [(str(path), 0)], 1)[0]
    entries, damage = shard.index()
    if damage:
        raise DamagedError(f"shard {path} {damage}")
    return entries


class _Header(NamedTuple):
    name: str
    offset: int
    size: int
    xxh3: str | None


class _RefusedError(Exception):
    """A member that no shard of ours would have."""


def _index(content: mmap.mmap) -> tuple[list[Entry], str]:
    """The samples of a tar up to where it is damaged, and what is wrong there ("" for nothing)."""
    entries: list[Entry] = []
    try:
        for name, offset, size, xxh3 in _members(content):
            if offset + size > len(content):
                return entries, f"is cut off after {len(entries)} samples"
            key, extension = _key(name)
            found = Member(extension, offset, size, xxh3)
            if not entries or entries[-1].key != key:
                entries.append(Entry(key, (found,)))
            elif any(extension == other.extension for other in entries[-1].members):
                raise _RefusedError(f"sample {key} has two members .{extension}")
            else:
                entries[-1] = Entry(key, (*entries[-1].members, found))
    except tarfile.TarError as error:
        return entries, f"is damaged after {len(entries)} samples ({error})"
    except _RefusedError as error:
        return [], f"is refused: {error}"
    return entries, ""


def _key(name: str) -> tuple[str, str]:
    """(key, extension) as webdataset divides a member's name: at the first dot of the last part."""
    folder, slash, last = name.rpartition("/")
    if name.startswith("/") or ".." in name.split("/"):
        raise _RefusedError(f"member {name!r} points out of the tar")
    stem, _, extension = last.partition(".")
    if not stem or not extension:
        raise _RefusedError(f"member {name!r} is not named KEY.EXTENSION")
    return folder + slash + stem, extension.lower()


def _members(content: mmap.mmap) -> Iterator[_Header]:
    """The plain files of a tar, in order: as `tarfile` finds them, but for the usual headers ten times as fast.

    Raises:
        tarfile.TarError: a header is damaged, or a member is neither a plain file nor a folder.
    """
    at = 0
    while at + BLOCK <= len(content):
        header = content[at : at + BLOCK]
        if header.count(0) == BLOCK:
            return
        checksum = sum(header) - sum(header[148:156]) + 8 * ord(" ")
        try:
            stated, size = _octal(header[148:156]), _octal(header[124:136])
        except ValueError:  # large sizes are not octal
            stated, size = -1, 0
        usual = header[156:157] in b"0\0" and header[345:346] == b"\0"
        if stated != checksum or not usual:
            # Long names, PAX headers, folders, links, and damage: the library knows them all.
            yield from _unusual_members(content, at)
            return
        name = header[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
        yield _Header(name, at + BLOCK, size, _checksum(_text(header[265:297]), _text(header[297:329])))
        at = _end(at + BLOCK, size)
    if at < len(content):
        raise tarfile.ReadError("cut off within a header")


def _unusual_members(content: mmap.mmap, start: int) -> Iterator[_Header]:
    try:
        tarfile.TarInfo.frombuf(content[start : start + BLOCK], tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError as error:  # in the middle of a file, `tarfile` would take it for the end
        raise tarfile.ReadError(str(error)) from None
    content.seek(start)
    with tarfile.open(fileobj=content, mode="r:") as tar:
        for member in tar:
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise _RefusedError(f"member {member.name!r} is not a plain file")
            xxh3 = _checksum(member.uname, member.gname)
            yield _Header(member.name, member.offset_data, member.size, xxh3)


def _end(offset: int, size: int) -> int:
    """Where the header after a member lies: contents are padded to whole blocks."""
    return offset + -(-size // BLOCK) * BLOCK


def _checksum(owner: str, group: str) -> str | None:
    return owner if group == CHECKSUM_GROUP else None


def _octal(field: bytes) -> int:
    return int(field.rstrip(b" \0"), 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("ascii", "replace")
