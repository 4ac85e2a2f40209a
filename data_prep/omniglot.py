"""Omniglot, 28×28 as in Burda et al., Importance Weighted Autoencoders (ICLR 2016): chardata.mat.

24,345 training and 8,070 test images, grey levels that are the probabilities of ones: binarised at each draw. `val` is
what the authors' code takes, the last 1,345 training images; in a file with another number of them it is cut by the
one rule (`splits`). A label is the number of the alphabet, of 50.
"""

import zlib
from pathlib import Path

import numpy as np
import scipy.io
from numpy import ndarray
from scipy.io.matlab import MatReadError

from attvae.data.manifest import Format, Split
from attvae.spec import DataSpec
from data_prep.array_images import ArrayImages, Arrays
from data_prep.dataset import Dataset, Images
from data_prep.source_files import found_in, identity
from data_prep.splits import Chosen, fixed_order, train_and_val

FILE = "chardata.mat"
SIDE = 28
TRAINING_IMAGES, VAL_IMAGES = 24_345, 1_345


def dataset(src: Path, format: Format) -> Dataset:
    """The images of chardata.mat, not padded.

    Args:
        src: the file, or its folder.

    Raises:
        ValueError: the file is missing, damaged, or does not hold what is expected.
    """
    path = src if src.is_file() else src / FILE
    if not path.is_file():
        raise ValueError(f"{src} has no images of Omniglot: expected {FILE}, found {found_in(src)}")
    held = identity(path.parent, [path.name])
    train = ArrayImages.of(_open, path, "data", "target", identity=held)
    return Dataset(
        name="omniglot",
        version="1",
        source="Omniglot 28×28 of Burda et al. (chardata.mat); val is the last 1,345 training images",
        identity=held,
        spec=DataSpec(height=SIDE, width=SIDE, channels=1, num_bits=8, max_value=255, binary=True),
        format=format,
        splits={**_split(train), "test": ArrayImages.of(_open, path, "testdata", "testtarget", identity=held)},
    )


def _split(training: ArrayImages) -> dict[Split, Images]:
    if len(training) != TRAINING_IMAGES:
        return train_and_val(training)
    cut = TRAINING_IMAGES - VAL_IMAGES
    return {"train": Chosen(training, fixed_order(cut)), "val": Chosen(training, np.arange(cut, TRAINING_IMAGES))}


def _open(path: Path, images: str, targets: str) -> Arrays:
    try:
        content = scipy.io.loadmat(path, variable_names=[images, targets])
    except (
        ValueError,
        TypeError,
        LookupError,
        NotImplementedError,
        EOFError,
        OSError,
        zlib.error,
        MatReadError,
    ) as error:
        raise ValueError(
            f"{path} is no MATLAB file of version 5, damaged or cut short ({error}): get it again"
        ) from None
    values_XN = content.get(images)
    if not isinstance(values_XN, ndarray) or values_XN.ndim != 2 or len(values_XN) != SIDE * SIDE:
        found = ", ".join(f"{name} {list(shape)} {kind}" for name, shape, kind in scipy.io.whosmat(path))
        raise ValueError(f"{path} has no matrix {images!r} [{SIDE * SIDE}, images]: found {found or 'nothing'}")
    if values_XN.dtype.kind not in "buif" or not (values_XN.min() >= 0 and values_XN.max() <= 1):
        raise ValueError(f"{path} has values outside 0..1 in {images!r}: expected probabilities")
    pixels_NX = np.rint(255 * values_XN.T.astype(np.float64)).astype(np.uint8)
    return Arrays(pixels_NX.reshape(-1, SIDE, SIDE, 1), _alphabets(path, content, targets, len(pixels_NX)))


def _alphabets(path: Path, content: dict[str, object], targets: str, images: int) -> ndarray:
    """The number of the one in each column."""
    ones_KN = content.get(targets)
    if not isinstance(ones_KN, ndarray) or ones_KN.ndim != 2 or ones_KN.shape[1] != images:
        raise ValueError(f"{path} has no matrix {targets!r} [alphabets, {images}], a column for each image")
    if (
        ones_KN.dtype.kind not in "buif"
        or not ((ones_KN == 0) | (ones_KN == 1)).all()
        or not (ones_KN.sum(0) == 1).all()
    ):
        raise ValueError(f"{path} has columns in {targets!r} that are not a single one among zeros")
    return ones_KN.argmax(0)
