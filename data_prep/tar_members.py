"""The files in a tar, read where they lie: nothing is ever extracted."""

import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from data_prep.source_files import Names


class Member(NamedTuple):
    """A regular file in a tar: its bytes are `size` bytes from `offset` on."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, eq=False)
class TarMembers:
    """Files in a tar (`source_files.Files`)."""

    tar: Path
    names: Names
    offsets: Int64[ndarray, "n"]
    sizes: Int64[ndarray, "n"]

    @classmethod
    def of(cls, tar: Path, members: Iterable[Member]) -> Self:
        """
        Raises:
            ValueError: there are none.
        """
        if not (listed := list(members)):
            raise ValueError(f"{tar} holds no files")
        names, offsets, sizes = zip(*listed, strict=True)
        return cls(tar, Names.of(names), np.array(offsets, np.int64), np.array(sizes, np.int64))

    def read(self, number: int) -> bytes:
        size = int(self.sizes[number])
        content = os.pread(_descriptor(self.tar), size, int(self.offsets[number]))
        if len(content) != size:
            raise OSError(f"{self.tar} ends in the middle of {self.names[number]}: it was changed since its listing")
        return content


def list_tar(path: Path, tar: Member | None = None) -> Iterator[Member]:
    """The regular files in a tar, in its order, found by their headers only; folders are left out.

    Args:
        tar: list this member, itself a tar; the offsets are still those in the file at `path`.

    Raises:
        ValueError: no uncompressed tar, one that is cut short or damaged, or one with absolute names, names with `..`,
            links, devices or sparse files.
        OSError: the file cannot be read.
    """
    start, size, name = (tar.offset, tar.size, f"{path}: {tar.name}") if tar else (0, path.stat().st_size, str(path))
    with path.open("rb") as file:
        file.seek(start)
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (header := archive.next()) is not None:
                    # tarfile would keep it: a kilobyte for each of a million.
                    archive.members.clear()  # type: ignore[attr-defined]
                    _check(header, name)
                    if header.offset_data + header.size > start + size:
                        raise ValueError(f"{name} is cut short: it ends in the middle of {header.name}")
                    if not header.isdir():
                        yield Member(header.name, header.offset_data, header.size)
                end = archive.offset
        except tarfile.TarError as error:
            raise ValueError(f"{name} is no uncompressed tar, or a damaged one ({error}): get it again") from None
        # tarfile takes any rubbish that follows a member for the end.
        if end + tarfile.BLOCKSIZE > start + size or any(os.pread(file.fileno(), tarfile.BLOCKSIZE, end)):
            raise ValueError(f"{name} is cut short or damaged {end - start} bytes from its start: get it again")


def _check(header: tarfile.TarInfo, tar: str) -> None:
    if header.name.startswith("/") or ".." in header.name.split("/"):
        raise ValueError(f"{tar} has a member with the name {header.name!r}: absolute names and .. are not allowed")
    if header.issparse() or not (header.isfile() or header.isdir()):
        raise ValueError(f"{tar} has a member {header.name!r} that is a link, a device or sparse: expected plain files")


@lru_cache(maxsize=8)
def _descriptor(path: Path) -> int:
    """Open as long as the process runs: a million images are read one by one."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
