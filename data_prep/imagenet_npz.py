"""Downsampled ImageNet in its newer form (Chrabaszcz et al., A Downsampled Variant of ImageNet, 2017), by box filter.

Distributed by image-net.org as train_data_batch_1 to _10 and val_data, .npz files or pickles, for 8, 16, 32 and 64
pixels; 1,281,167 and 50,000 images. Papers report their figures on val_data, which is `test` here; `val` is cut from
the training batches (`splits`).
"""

from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from numpy import ndarray

from attvae.data.manifest import Format
from attvae.spec import DataSpec
from data_prep import safe_unpickle
from data_prep.array_images import ArrayImages, Arrays, Joined
from data_prep.atomic import aside
from data_prep.dataset import Dataset
from data_prep.npy_files import mapped, unpack
from data_prep.source_files import found_in, identity
from data_prep.splits import train_and_val

# The images of 64 pixels come as two archives of five batches each: one that was forgotten must not go unnoticed.
TRAIN = tuple(f"train_data_batch_{number}" for number in range(1, 11))
VAL = "val_data"
SIZES = (8, 16, 32, 64)
CLASSES = 1000


def dataset(src: Path, format: Format, work: Path) -> Dataset:
    """The images in a folder of the eleven files. Labels are those of the files less one: 0..999.

    Args:
        work: where the batches are unpacked to, as large as all the images. Those that an interrupted preparation has
            left there are used again. No more than one pickled batch is in memory at a time.

    Raises:
        ValueError: batches are missing, damaged, cut short or of unequal sizes; a pickle names anything but arrays.
        OSError: `work` is full.
    """
    found = found_in(src)
    files = {batch: path for batch in (*TRAIN, VAL) if (path := _file(src, batch))}
    if missing := [batch for batch in (*TRAIN, VAL) if batch not in files]:
        what = f"lacks {', '.join(missing)}" if files else "has no images of downsampled ImageNet"
        raise ValueError(
            f"{src} {what}: expected {TRAIN[0]} to {TRAIN[-1]} and {VAL}, with or without .npz; found {found}"
        )
    held = identity(src, [path.name for path in files.values()])
    unpacked = {batch: (path, *_unpacked(path, work / held / batch)) for batch, path in files.items()}
    parts = {batch: ArrayImages.of(_open, *paths, identity=held) for batch, paths in unpacked.items()}
    sizes = {batch: _open(*paths).pixels_NHWC.shape[1] for batch, paths in unpacked.items()}
    size = sizes[VAL]
    if unequal := [batch for batch in TRAIN if sizes[batch] != size]:
        raise ValueError(
            f"{src} has images of {sizes[unequal[0]]} pixels in {unequal[0]}, of {size} in {VAL}: keep one size"
        )
    return Dataset(
        name=f"imagenet{size}-npz",
        version="npz",
        source=f"downsampled ImageNet {size}×{size} of Chrabaszcz et al. (image-net.org, npz, box filter); test is "
        "val_data. Not the older png files of van den Oord et al.: bits per dimension on the two are not comparable "
        "(0.26 apart for one and the same model)",
        identity=held,
        spec=DataSpec(height=size, width=size, channels=3, num_bits=8, max_value=255),
        format=format,
        splits={**train_and_val(Joined(tuple(parts[batch] for batch in TRAIN))), "test": parts[VAL]},
    )


def _file(src: Path, batch: str) -> Path | None:
    return next((path for path in (src / f"{batch}.npz", src / batch) if path.is_file()), None)


def _unpacked(file: Path, folder: Path) -> tuple[Path, Path]:
    """The images and labels of a batch as .npy files."""
    data, labels = folder / "data.npy", folder / "labels.npy"
    if file.suffix == ".npz":
        unpack(file, "data", data)
        unpack(file, "labels", labels)
    elif not (data.exists() and labels.exists()):
        with file.open("rb") as pickled:
            batch = safe_unpickle.load(pickled, str(file))
        if not {"data", "labels"} <= batch.keys():
            raise ValueError(f"{file} has no data and labels: found {', '.join(batch) or 'nothing'}")
        folder.mkdir(parents=True, exist_ok=True)
        for path in (data, labels):
            with aside(path) as target:
                np.save(target, np.asarray(batch[path.stem]), allow_pickle=False)
    return data, labels


def _open(file: Path, data: Path, labels: Path) -> Arrays:
    pixels_NX, classes = mapped(data, f"data in {file}"), mapped(labels, f"labels in {file}")
    return Arrays(_images(pixels_NX, file), _classes(classes, file, len(pixels_NX)))


def _images(pixels_NX: ndarray, file: Path) -> UInt8[ndarray, "n h w 3"]:
    """Each row holds all red values of an image, row by row, then green, then blue."""
    size = next((size for size in SIZES if pixels_NX.shape[1:] == (3 * size * size,)), None)
    if size is None or pixels_NX.dtype != np.uint8 or not len(pixels_NX):
        raise ValueError(
            f"{file} has the array data {pixels_NX.dtype} {list(pixels_NX.shape)}, expected uint8 [images, 3·S·S] with "
            f"S one of {', '.join(map(str, SIZES))}"
        )
    return pixels_NX.reshape(-1, 3, size, size).transpose(0, 2, 3, 1)


def _classes(labels: ndarray, file: Path, images: int) -> Integer[ndarray, "n"]:
    if labels.dtype.kind not in "iu" or labels.shape != (images,):
        raise ValueError(
            f"{file} has labels {labels.dtype} {list(labels.shape)} for {images} images: expected a number each"
        )
    if labels.min() < 1 or labels.max() > CLASSES:
        raise ValueError(f"{file} has labels {labels.min()}..{labels.max()}, expected 1..{CLASSES}")
    return labels.astype(np.int64) - 1
