"""scikit-learn's handwritten digits: 1,797 images of 8×8 with grey levels 0..16.

The split is by index. The data set lists its writers one after the other, so the test digits are other people's.
"""

from collections.abc import Iterator
from functools import partial

from sklearn.datasets import load_digits

from attvae.data.manifest import Split
from attvae.spec import DataSpec
from data_prep.writer import Dataset, Members, npy

INDICES: dict[Split, range] = {"train": range(1400), "val": range(1400, 1500), "test": range(1500, 1797)}


def dataset() -> Dataset:
    return Dataset(
        name="digits",
        version="1",
        source="sklearn.datasets.load_digits (UCI Optical Recognition of Handwritten Digits, test set)",
        spec=DataSpec(height=8, width=8, channels=1, num_bits=5, max_value=16, binary=True),
        splits={split: partial(_samples, indices) for split, indices in INDICES.items()},
    )


def _samples(indices: range) -> Iterator[Members]:
    digits = load_digits()
    for index in indices:
        pixels_HWC = digits.images[index].astype("uint8")[:, :, None]
        yield {"npy": npy(pixels_HWC), "cls": str(digits.target[index]).encode()}
