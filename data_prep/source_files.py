"""The many small files of a source, by number, in little memory: arrays instead of a Python object a file."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import xxhash
from jaxtyping import Int64, Shaped
from numpy import ndarray

from data_prep.counted import counted
from data_prep.dataset import Image, Rejected


@dataclass(frozen=True, eq=False)
class Names:
    """File names in one string of bytes.

    Attributes:
        ends: where each name ends, and the next one begins.
    """

    joined: bytes
    ends: Int64[ndarray, "n"]

    @classmethod
    def of(cls, names: Iterable[str]) -> Self:
        encoded = [os.fsencode(name) for name in names]
        return cls(b"".join(encoded), np.cumsum([len(name) for name in encoded], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> str:
        start = self.ends[number - 1] if number else 0
        return os.fsdecode(self.joined[start : self.ends[number]])

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self)))


class Files(Protocol):
    """Some files of a source: in a folder, or in a tar. Picklable."""

    @property
    def names(self) -> Names: ...

    def read(self, number: int) -> bytes:
        """
        Raises:
            OSError: the file is not there any more, or cannot be read.
        """
        ...


@dataclass(frozen=True, eq=False)
class FolderFiles:
    """Files below a folder."""

    folder: Path
    names: Names

    def read(self, number: int) -> bytes:
        return (self.folder / self.names[number]).read_bytes()


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """The images in some files.

    Attributes:
        content: of an image, from the bytes of its file; a ValueError rejects the file.
        labels: numbers of classes.
    """

    files: Files
    content: Callable[[bytes], Shaped[ndarray, "h w c"] | bytes]
    labels: Shaped[ndarray, "n"] | None = None

    def __len__(self) -> int:
        return len(self.files.names)

    def read(self, numbers: range) -> Iterator[Image | Rejected]:
        for number in numbers:
            name = self.files.names[number]
            file = self.files.read(number)
            try:
                content = self.content(file)
            except ValueError as error:
                yield Rejected(name, str(error))
            else:
                label = None if self.labels is None else str(self.labels[number])
                yield Image(content, label, {"file": name})


def list_folder(src: Path, below: str, suffixes: frozenset[str]) -> list[str]:
    """The names, relative to `src`, of all files below its folder `below` that end in one of `suffixes` (lower case),
    sorted by their bytes.

    Names that begin with a dot are left out. A symbolic link to a file in `src` is read as that file; links to folders
    are not followed.

    Raises:
        ValueError: a symbolic link that leads out of `src`, or to nothing.
    """
    inside = src.resolve()
    if not (inside / below).resolve().is_relative_to(inside):
        raise ValueError(f"{src / below} is a symbolic link that leads out of {src}: replace it with a folder")
    names = counted(_walk(src, below, suffixes, inside), f"files in {src / below}")
    return sorted(names, key=os.fsencode)


def _walk(src: Path, below: str, suffixes: frozenset[str], inside: Path) -> Iterator[str]:
    with os.scandir(src / below) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = f"{below}/{entry.name}" if below else entry.name
            wanted = os.path.splitext(entry.name)[1].lower() in suffixes
            if entry.is_symlink() and (wanted or entry.is_dir()):
                target = Path(entry.path).resolve()
                if not target.is_relative_to(inside):
                    raise ValueError(f"{src / name} is a symbolic link that leads out of {src}: replace it with a copy")
                if not target.exists():
                    raise ValueError(f"{src / name} is a symbolic link that leads to nothing: remove it")
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(src, name, suffixes, inside)
            elif wanted and entry.is_file():
                yield name


def found_in(src: Path) -> str:
    """What lies in the folder `src`, in words for a message.

    Raises:
        ValueError: there is no such folder.
    """
    if not src.is_dir():
        raise ValueError(f"--src {src} is no folder")
    names = sorted(path.name for path in src.iterdir())
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "nothing") + more


def identity(src: Path, names: Iterable[str]) -> str:
    """XXH3 (128 bits, hex) of the names, sizes and times of change of files."""
    digest = xxhash.xxh3_128()
    for name in names:
        status = (src / name).stat()
        digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n"))
    return digest.hexdigest()
