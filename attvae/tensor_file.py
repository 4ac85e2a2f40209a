"""The safetensors format, written and read one tensor at a time: nothing as large as a file is ever in memory.

A file is the length of its header (8 bytes, little-endian), the header (JSON, padded with spaces to a multiple of 8),
and the tensors in the header's order without gaps; the widest types come first, so that every tensor is aligned. What
is written is what the safetensors library writes, byte for byte, but hashed on its way and readable by whom the umask
allows. The library checks what is read; its memory map would end the process where a network file system fails.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""In the order in which a file holds them."""
CODES = {dtype: code for code, dtype in DTYPES.items()}
BLOCK = 1 << 20


class FileHash(NamedTuple):
    """What a manifest says of a file."""

    bytes: int
    xxh3: str
    """XXH3, 128 bits, in hexadecimal digits."""


def write(path: Path, tensors: Mapping[str, Tensor]) -> FileHash:
    """Writes contiguous tensors that lie in the CPU's memory, and flushes them to the disk.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    order = list(DTYPES)
    names = sorted(tensors, key=lambda name: (order.index(CODES[tensors[name].dtype]), name))
    header: dict[str, dict[str, object]] = {}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": CODES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = xxhash.xxh3_128()
    with path.open("wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            digest.update(part)
            file.write(part)
        for name in names:
            data = _bytes(tensors[name])
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return FileHash(8 + len(text) + end, digest.hexdigest())


def hash_file(path: Path) -> FileHash:
    digest, size = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            size += len(block)
    return FileHash(size, digest.hexdigest())


class _Place(NamedTuple):
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Bytes from the start of the file."""


class TensorFile:
    """A file of tensors, each read when it is asked for. It is open only meanwhile: it may be removed at any time."""

    def __init__(self, path: Path) -> None:
        """Reads and checks the header.

        Raises:
            ValueError: this is no safetensors file, or one with tensors of a type that is not known here.
            OSError: it cannot be read.
        """
        self.path = path
        try:
            with safe_open(path, "pt"):
                pass
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            self._places = {
                name: _Place(DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
                for name, entry in header.items()
            }
        except SafetensorError as error:
            raise ValueError(f"{path} cannot be read ({error})") from error
        except KeyError as error:
            raise ValueError(f"{path} has a tensor of type {error}; known here are {', '.join(DTYPES)}") from error

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: place.shape for name, place in self._places.items()}

    def tensor(self, name: str) -> Tensor:
        """
        Raises:
            ValueError: the file has been cut short since it was opened.
            OSError: it cannot be read.
        """
        dtype, shape, start = self._places[name]
        tensor = torch.empty(shape, dtype=dtype)
        with self.path.open("rb") as file:
            file.seek(start)
            if file.readinto(_bytes(tensor)) != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{self.path} ends within {name}: it has been changed since it was opened")
        return tensor


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor itself."""
    return tensor.detach().view(-1).view(torch.uint8).numpy().data
