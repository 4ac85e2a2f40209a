"""The compressed file (docs/compress.md).

magic     8 bytes, `attvaeBB`
version   2 bytes, the bytes of numbers little-endian throughout
length    4 bytes, of the header
header    JSON, deflated (zlib)
payload   the stack's words of 4 bytes without those at its bottom that nobody has touched
checksum  16 bytes, XXH3 (128 bits) of all that stands before it
"""

import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import xxhash
from jaxtyping import UInt32
from numpy import ndarray
from pydantic import Field, ValidationError, model_validator

from attvae.all_or_nothing import all_or_nothing
from attvae.compression.bits_back import Precision
from attvae.spec import Config, DataSpec

MAGIC = b"attvaeBB"
FORMAT_VERSION = 1
FRONT = struct.Struct("<8sHI")
CHECKSUM_BYTES = 16
LARGEST_HEADER = 2**28  # bytes, deflated or not: a file from elsewhere must not fill the memory
MOST_WORDS = 2**28  # that a stack starts with
MOST_IMAGES = 10**9  # their names, where they have none of their own, are numbers of nine digits
LONGEST_NAME = 255  # bytes, of Linux's file systems


class MadeWith(Config):
    """What the numbers of the model may depend on in their last bits."""

    torch: str
    constriction: str
    machine: str
    threads: int = Field(ge=1)

    def __str__(self) -> str:
        return f"torch {self.torch}, constriction {self.constriction}, {self.machine}, {self.threads} thread(s)"


class Header(Config):
    """What a file says of itself.

    Attributes:
        model: fingerprint of the weights and the architecture.
        names: of the images, where they came from files: a file name each, which all end in .png.
        batches: images of each batch, in the order of coding.
        initial_words: words of random bits, from `initial_seed`, that the stack started with.
        untouched_words: the lowest of them, which the payload leaves out.
        pixels_xxh3: of the XXH3 of each image's pixels, [C, H, W], as the model takes them.
    """

    model: str
    spec: DataSpec
    images: int = Field(ge=1, le=MOST_IMAGES)
    names: tuple[str, ...] | None
    precision: Precision
    batches: tuple[int, ...]
    initial_seed: int = Field(ge=0, lt=2**64)
    initial_words: int = Field(ge=2, le=MOST_WORDS)
    untouched_words: int = Field(ge=0)
    pixels_xxh3: str
    made_with: MadeWith

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if min(self.batches, default=0) < 1 or sum(self.batches) != self.images:
            raise ValueError(f"{self.images} images do not fit its batches")
        if self.untouched_words > self.initial_words:
            raise ValueError(f"{self.untouched_words} of {self.initial_words} words untouched")
        if self.names is not None:
            if len(set(self.names)) != self.images or len(self.names) != self.images:
                raise ValueError(f"{self.images} images need as many names, all different")
            for name in self.names:
                check_name(name)
        return self


def check_name(name: str) -> None:
    """A file from elsewhere must not write outside the folder that it is unpacked into, and every name must fit there.

    Raises:
        ValueError: says why.
    """
    if name != os.path.basename(name) or "\\" in name or "\0" in name or not name.endswith(".png"):
        raise ValueError(f"{name!r} is no name of a PNG file")
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{name!r} is not UTF-8") from None
    if length > LONGEST_NAME:
        raise ValueError(f"the name {name!r} has {length} bytes, {LONGEST_NAME} at most fit")


class CompressedFile(NamedTuple):
    header: Header
    payload: UInt32[ndarray, "n"]


def to_bytes(file: CompressedFile) -> bytes:
    """
    Raises:
        ValueError: a header that could not be read again.
    """
    described = file.header.model_dump_json().encode()
    if len(described) > LARGEST_HEADER:
        raise ValueError(
            f"the header, which names the images, takes {len(described):,} bytes, {LARGEST_HEADER:,} at most: put "
            "fewer images into a file"
        )
    header = zlib.compress(described, 9)
    content = FRONT.pack(MAGIC, FORMAT_VERSION, len(header)) + header + file.payload.astype("<u4").tobytes()
    return content + xxhash.xxh3_128_digest(content)


def from_bytes(content: bytes, path: Path) -> CompressedFile:
    """
    Raises:
        ValueError: no such file, one of another version, or one that is damaged in any bit or cut short.
    """
    if len(content) < FRONT.size or not content.startswith(MAGIC):
        raise ValueError(f"{path} is not a file that `attvae compress` has written")
    body, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    if len(content) < FRONT.size + CHECKSUM_BYTES or xxhash.xxh3_128_digest(body) != checksum:
        raise ValueError(damaged(path, "its checksum does not fit"))
    _, version, length = FRONT.unpack_from(content)
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has format {version}, this attvae reads {FORMAT_VERSION}")
    deflated, payload = body[FRONT.size : FRONT.size + length], body[FRONT.size + length :]
    try:
        inflate = zlib.decompressobj()
        header = Header.model_validate_json(inflate.decompress(deflated, LARGEST_HEADER))
        words = np.frombuffer(payload, "<u4").astype(np.uint32)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'header'}: {e['msg']}" for e in error.errors())
        raise ValueError(damaged(path, faults)) from error
    except (zlib.error, ValueError) as error:
        raise ValueError(damaged(path, str(error))) from error
    return CompressedFile(header, words)


def damaged(path: Path, why: str) -> str:
    """The message."""
    return f"{path} is damaged or cut short: get another copy of it ({why})"


def write(path: Path, file: CompressedFile) -> int:
    """Writes a new file, whole or not at all; its bytes.

    Raises:
        OSError: it cannot be written.
    """
    content = to_bytes(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    with all_or_nothing(path) as made, made.open("wb") as to:
        to.write(content)
        to.flush()
        os.fsync(to.fileno())
    return len(content)


def read(path: Path) -> CompressedFile:
    """
    Raises:
        ValueError: it cannot be read, or is not a sound file of this format.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    return from_bytes(content, path)
