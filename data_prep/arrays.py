"""Images in numpy arrays: a .npy file, a .npz file, or a folder of .npy files.

A single .npy file is parted into train, val and test. A .npz file or a folder names its arrays train, val (or valid,
validation) and test, and their classes train_labels, val_labels (...) and test_labels; splits that are missing are cut
from train (`splits`).
"""

from pathlib import Path

import numpy as np
from jaxtyping import Integer, Shaped
from numpy import ndarray

from attvae.data.manifest import Format, Split
from attvae.spec import DataSpec
from data_prep.array_images import ArrayImages, Arrays
from data_prep.dataset import Dataset
from data_prep.npy_files import mapped, members, unpack
from data_prep.source_files import found_in, identity
from data_prep.splits import complete

NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
CHANNELS = (1, 3, 4)


def dataset(src: Path, size: int | None, format: Format, work: Path) -> Dataset:
    """The images of arrays [N, H, W], [N, H, W, C], or [N, C, H, W], of 1, 3 or 4 channels.

    Arrays of uint8 give 8 bits, of uint16 16 bits, of bool binary images.

    Args:
        size: of the centre square, scaled with a box filter; None: as they are.
        work: where the arrays of a .npz file are unpacked to.

    Raises:
        ValueError: no such arrays; arrays of other types or shapes; of Python objects (which are never unpickled);
            cut short; splits that are not alike; labels that do not fit.
        OSError: `work` is full.
    """
    if src.is_dir():
        there = {path.stem: path for path in src.glob("*.npy")}
        chosen = _choose(src, list(there), found_in(src))
        held = identity(src, [there[name].name for names in chosen.values() for name in names])
    elif not src.is_file() or src.suffix not in (".npy", ".npz"):
        raise ValueError(f"--src {src} should be a .npy file, a .npz file, or a folder of .npy files")
    else:
        held = identity(src.parent, [src.name])
        if src.suffix == ".npy":
            there, chosen = {"train": src}, {"train": ["train"]}
        else:
            arrays = members(src)
            there = {name: work / held / f"{name}.npy" for name in arrays}
            chosen = _choose(src, arrays, ", ".join(arrays) or "nothing")
            for name in [name for names in chosen.values() for name in names]:
                unpack(src, name, there[name])
    files = {split: tuple(there[name] for name in names) for split, names in chosen.items()}
    spec = _common_spec(src, [paths[0] for paths in files.values()], size)
    images = {split: ArrayImages.of(_open, src, *paths, identity=held) for split, paths in files.items()}
    return Dataset(
        name=f"{src.resolve().stem}{size or ''}",
        version="1",
        source=f"numpy arrays of {src.resolve().name}",
        identity=held,
        spec=spec,
        format=format,
        splits=complete(images),
    )


def _choose(src: Path, arrays: list[str], found: str) -> dict[Split, list[str]]:
    """The names of each split's images and, where there are any, its labels."""
    chosen: dict[Split, list[str]] = {}
    for split, names in NAMES.items():
        held = [name for name in names if name in arrays]
        if len(held) > 1:
            raise ValueError(f"{src} has the arrays {' and '.join(held)}, both for {split}: keep one")
        labels = [f"{name}_labels" for name in names if f"{name}_labels" in arrays]
        if held:
            chosen[split] = held + labels[:1]
    if "train" not in chosen:
        raise ValueError(
            f"{src} has no array named train (beside it may be val, test, train_labels, ...): found {found}"
        )
    return chosen


def _open(src: Path, images: Path, labels: Path | None = None) -> Arrays:
    pixels_NHWC = _pixels(src, images)
    if pixels_NHWC.dtype == np.bool_:
        pixels_NHWC = pixels_NHWC.view(np.uint8)
    return Arrays(pixels_NHWC, None if labels is None else _labels(src, labels, len(pixels_NHWC)))


def _pixels(src: Path, path: Path) -> Shaped[ndarray, "n h w c"]:
    name = _name(src, path)
    array = mapped(path, name)
    if array.dtype.kind not in "bu" or array.dtype.itemsize > 2:
        raise ValueError(f"{name} has values of type {array.dtype}, expected uint8, uint16, or bool")
    if 0 in array.shape:
        raise ValueError(f"{name} has no images: its shape is {list(array.shape)}")
    match array.shape:
        case (_, _, _):
            return array[..., None]
        case (_, first, _, last) if last in CHANNELS and first not in CHANNELS:
            return array
        case (_, first, _, last) if first in CHANNELS and last not in CHANNELS:
            return array.transpose(0, 2, 3, 1)
    raise ValueError(
        f"{name} has the shape {list(array.shape)}, expected [N, H, W], [N, H, W, C] or [N, C, H, W] with C 1, 3 or 4, "
        "and only one of the two"
    )


def _labels(src: Path, path: Path, images: int) -> Integer[ndarray, "n"]:
    name = _name(src, path)
    labels = mapped(path, name)
    if labels.dtype.kind not in "iu" or labels.shape not in ((images,), (images, 1)):
        raise ValueError(
            f"{name} is {labels.dtype} {list(labels.shape)}, expected a whole number for each of the {images} images"
        )
    return labels.reshape(images)


def _common_spec(src: Path, files: list[Path], size: int | None) -> DataSpec:
    """
    Raises:
        ValueError: the arrays are not alike, or cannot be scaled.
    """
    first, *others = [_pixels(src, path) for path in files]
    for other, path in zip(others, files[1:], strict=True):
        alike = slice(3, 4) if size else slice(1, 4)
        if other.dtype != first.dtype or other.shape[alike] != first.shape[alike]:
            raise ValueError(
                f"unequal images in {src}: {files[0].stem} has {first.dtype} of {_words(first)}, "
                f"{path.stem} has {other.dtype} of {_words(other)}"
            )
    height, width, channels = first.shape[1:]
    binary = first.dtype == np.bool_
    if size and binary:
        raise ValueError(f"the images of {src} are binary and cannot be scaled: leave --size out")
    num_bits = 1 if binary else 8 * first.dtype.itemsize
    return DataSpec(
        height=size or height,
        width=size or width,
        channels=channels,
        num_bits=num_bits,
        max_value=2**num_bits - 1,
        binary=binary,
    )


def _words(pixels_NHWC: Shaped[ndarray, "n h w c"]) -> str:
    _, height, width, channels = pixels_NHWC.shape
    return f"{height}×{width} with channels: {channels}"


def _name(src: Path, path: Path) -> str:
    """Of a file in messages: what was unpacked is named by where it comes from."""
    return str(path) if path.is_relative_to(src) else f"{src}: {path.stem}"
