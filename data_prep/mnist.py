"""MNIST (LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998): 70,000 digits of 28×28.

Distributed as four files in the idx format, gzipped or not; Fashion-MNIST and others come in the same form. `test` is
t10k; `val` is cut from the training images (`splits`). Grey levels are probabilities of ones: binarised at each draw.
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from attvae.data.manifest import Format
from attvae.spec import DataSpec
from data_prep.array_images import ArrayImages, Arrays
from data_prep.dataset import Dataset
from data_prep.source_files import found_in, identity
from data_prep.splits import train_and_val

SIDE = 28
# The file's first four bytes: two zeros, the type of a value (8: a byte), the number of dimensions.
IMAGES_MAGIC, LABELS_MAGIC = 0x803, 0x801


def dataset(src: Path, size: int | None, format: Format) -> Dataset:
    """The digits in a folder of train-images-idx3-ubyte and the three other files, plain or .gz, also named with a dot
    (train-images.idx3-ubyte).

    Args:
        size: height and width to scale to; None: 28.

    Raises:
        ValueError: files are missing, damaged, cut short, of another kind, or do not belong together.
    """
    names = {part: _find(src, part) for part in ("train-images", "train-labels", "t10k-images", "t10k-labels")}
    if missing := [part for part, name in names.items() if name is None]:
        raise ValueError(
            f"{src} lacks {', '.join(missing)}: expected train-images-idx3-ubyte, train-labels-idx1-ubyte, "
            f"t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, or these with .gz; found {found_in(src)}"
        )
    files = {part: src / name for part, name in names.items() if name is not None}
    held = identity(src, [file.name for file in files.values()])
    train = ArrayImages.of(_open, files["train-images"], files["train-labels"], identity=held)
    test = ArrayImages.of(_open, files["t10k-images"], files["t10k-labels"], identity=held)
    side = size or SIDE
    return Dataset(
        name="mnist" if side == SIDE else f"mnist-{size}",
        version="1",
        source="MNIST or another data set in its format (idx files), test is t10k",
        identity=held,
        spec=DataSpec(height=side, width=side, channels=1, num_bits=8, max_value=255, binary=True),
        format=format,
        splits={**train_and_val(train), "test": test},
    )


def _find(src: Path, part: str) -> str | None:
    dimensions = 3 if part.endswith("images") else 1
    names = [f"{part}{dot}idx{dimensions}-ubyte{packed}" for dot in "-." for packed in ("", ".gz")]
    return next((name for name in names if (src / name).is_file()), None)


def _open(images: Path, labels: Path) -> Arrays:
    pixels_NHW = _read_idx(images, IMAGES_MAGIC)
    classes = _read_idx(labels, LABELS_MAGIC)
    if pixels_NHW.shape[1:] != (SIDE, SIDE):
        height, width = pixels_NHW.shape[1:]
        raise ValueError(f"{images} has images of {height}×{width} pixels, expected {SIDE}×{SIDE}")
    if len(classes) != len(pixels_NHW):
        raise ValueError(f"{labels} has {len(classes)} labels for the {len(pixels_NHW)} images of {images.name}")
    return Arrays(pixels_NHW[..., None], classes)


def _read_idx(path: Path, magic: int) -> UInt8[ndarray, "..."]:
    """The array in an idx file: its magic number and lengths as big-endian integers of 32 bits, then its bytes."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged or cut short ({error}): get it again") from None
    dimensions = magic & 0xFF
    begins = 4 * (1 + dimensions)
    if len(content) < begins or not content.startswith(magic.to_bytes(4, "big")):
        raise ValueError(
            f"{path} is no idx file of {dimensions} dimensions: it has {len(content)} bytes and begins with "
            f"0x{content[:4].hex()}, expected 0x{magic:08x}"
        )
    lengths = np.frombuffer(content[4:begins], ">u4").tolist()
    claimed, there = math.prod(lengths), len(content) - begins
    if there != claimed:
        raise ValueError(
            f"{path} claims {lengths[0]} samples, {claimed} bytes, but has {there}: it is damaged, get it again"
        )
    return np.frombuffer(content, np.uint8, offset=begins).reshape(lengths)
