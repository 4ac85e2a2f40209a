"""A PNG written piece by piece, so that a picture of any size takes little memory (W3C: PNG, third edition)."""

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from attvae.all_or_nothing import all_or_nothing

_COLOUR_TYPES = {1: 0, 3: 2}  # by channels: grey, RGB


def save_png_stream(
    path: Path, width: int, height: int, channels: int, bands: Iterable[UInt8[ndarray, "rows w c"]]
) -> None:
    """Writes rows of pixels, top to bottom in bands, as a PNG of 8 bits; whole or not at all."""
    with all_or_nothing(path) as aside, aside.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        _chunk(file, b"IHDR", struct.pack(">2I5B", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0))
        compressor = zlib.compressobj()
        written = 0
        for band in bands:
            rows = band.reshape(len(band), width * channels)
            filters = np.zeros((len(rows), 1), np.uint8)  # none, before each row
            _chunk(file, b"IDAT", compressor.compress(np.hstack([filters, rows]).tobytes()))
            written += len(rows)
        assert written == height, f"{written} rows of {height}"
        _chunk(file, b"IDAT", compressor.flush())
        _chunk(file, b"IEND", b"")


def _chunk(file: BinaryIO, kind: bytes, content: bytes) -> None:
    file.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
