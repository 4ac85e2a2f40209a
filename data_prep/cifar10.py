"""CIFAR-10 (Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009): 60,000 images of 32×32.

Distributed as cifar-10-binary.tar.gz and cifar-10-python.tar.gz, which hold the same images in the same order.
`test` is test_batch; `val` is cut from the five training batches (`splits`).
"""

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from numpy import ndarray

from attvae.data.manifest import Format
from attvae.spec import DataSpec
from data_prep import safe_unpickle
from data_prep.array_images import ArrayImages, Arrays
from data_prep.dataset import Dataset
from data_prep.source_files import found_in, identity
from data_prep.splits import train_and_val

BATCHES: dict[Literal["train", "test"], tuple[str, ...]] = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}
# Each row of either version: all red values of an image, row by row, then green, then blue.
CHANNELS, SIDE = 3, 32
VALUES = CHANNELS * SIDE * SIDE
CLASSES = 10


def dataset(src: Path, size: int | None, format: Format) -> Dataset:
    """The images in a folder or .tar.gz of the binary version, or of the python version, whose pickles run no code.

    Args:
        size: height and width to scale to; None: 32.

    Raises:
        ValueError: batches are missing, damaged or cut short; a pickle names anything but arrays; a member of the
            archive is a link, a device, or has an absolute name or one with `..`.
    """
    held = _held(src)
    versions = {
        suffix: [f"{batch}{suffix}" for batches in BATCHES.values() for batch in batches] for suffix in (".bin", "")
    }
    suffix, names = max(versions.items(), key=lambda version: len(held.intersection(version[1])))
    if missing := [name for name in names if name not in held]:
        what = f"{src} has no images of CIFAR-10" if len(missing) == len(names) else f"{src} lacks {', '.join(missing)}"
        found = ", ".join(sorted(held)[:8]) or "nothing"
        raise ValueError(
            f"{what}: expected data_batch_1.bin to data_batch_5.bin and test_batch.bin, or the same names without .bin "
            f"(the python version), in a folder or a .tar.gz; found {found}"
        )
    files = identity(src, names) if src.is_dir() else identity(src.parent, [src.name])
    train = ArrayImages.of(_open, src, suffix, BATCHES["train"], identity=files)
    side = size or SIDE
    return Dataset(
        name="cifar10" if size in (None, SIDE) else f"cifar10-{size}",
        version="1",
        source="CIFAR-10 of Krizhevsky (cs.toronto.edu), test is test_batch",
        identity=files,
        spec=DataSpec(height=side, width=side, channels=CHANNELS, num_bits=8, max_value=255),
        format=format,
        splits={**train_and_val(train), "test": ArrayImages.of(_open, src, suffix, BATCHES["test"], identity=files)},
    )


def _held(src: Path) -> set[str]:
    """The names of the files in the folder or archive."""
    if src.is_file():
        return {name for name, _ in _members(src, frozenset())}
    found_in(src)
    return {path.name for path in src.iterdir()}


def _open(src: Path, suffix: str, batches: tuple[str, ...]) -> Arrays:
    names = [f"{batch}{suffix}" for batch in batches]
    files = _members(src, frozenset(names)) if src.is_file() else ((name, (src / name).read_bytes()) for name in names)
    read = _binary if suffix else _pickled
    # In the archive they may lie in any order.
    parts = {name: read(content, f"{src}: {name}") for name, content in files if name in names}
    pixels_NX, labels = (np.concatenate(arrays) for arrays in zip(*(parts[name] for name in names), strict=True))
    if labels.min() < 0 or labels.max() >= CLASSES:
        raise ValueError(f"{src} has labels {labels.min()}..{labels.max()}, expected 0..{CLASSES - 1}: get it again")
    return Arrays(pixels_NX.reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1), labels)


def _binary(content: bytes, name: str) -> tuple[ndarray, ndarray]:
    images, rest = divmod(len(content), 1 + VALUES)
    if rest or not images:
        raise ValueError(f"{name} has {len(content)} bytes, expected a multiple of {1 + VALUES}: get it again")
    rows = np.frombuffer(content, np.uint8).reshape(images, 1 + VALUES)
    return rows[:, 1:], rows[:, 0]


def _pickled(content: bytes, name: str) -> tuple[ndarray, ndarray]:
    batch = safe_unpickle.load(io.BytesIO(content), name)
    pixels_NX, labels = batch.get("data"), np.asarray(batch.get("labels", ()))
    if not isinstance(pixels_NX, ndarray) or pixels_NX.dtype != np.uint8 or pixels_NX.shape[1:] != (VALUES,):
        raise ValueError(
            f"{name} has no array 'data' [images, {VALUES}] of uint8: found {', '.join(batch) or 'nothing'}"
        )
    if labels.shape != pixels_NX.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            f"{name} has {len(pixels_NX)} images and {labels.size} labels, expected a number for each image"
        )
    return pixels_NX, labels


def _members(archive: Path, wanted: frozenset[str]) -> Iterator[tuple[str, bytes]]:
    """The files in the archive by the last part of their names; those that are not wanted come without content."""
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if member.name.startswith("/") or ".." in member.name.split("/"):
                    raise ValueError(f"{archive} has a member {member.name!r}: absolute names and .. are not allowed")
                if not (member.isfile() or member.isdir()):
                    raise ValueError(
                        f"{archive} has a member {member.name!r} that is a link or a device: only files may be"
                    )
                name = Path(member.name).name
                if name in wanted:
                    file = tar.extractfile(member)
                    assert file is not None
                    yield name, file.read()
                elif member.isfile():
                    yield name, b""
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{archive} is no .tar.gz, damaged or cut short ({error}): get it again") from None
