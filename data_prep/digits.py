"""scikit-learn's handwritten digits: 1,797 images of 8×8 with grey levels 0..16.

The split is by index. The data set lists its writers one after the other, so the test digits are other people's.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import sklearn
from sklearn.datasets import load_digits

from attvae.data.manifest import Split
from attvae.spec import DataSpec
from data_prep.dataset import Dataset, Image

INDICES: dict[Split, range] = {"train": range(1400), "val": range(1400, 1500), "test": range(1500, 1797)}


def dataset() -> Dataset:
    return Dataset(
        name="digits",
        version="1",
        source="sklearn.datasets.load_digits (UCI Optical Recognition of Handwritten Digits, test set)",
        identity=f"scikit-learn {sklearn.__version__}",
        spec=DataSpec(height=8, width=8, channels=1, num_bits=5, max_value=16, binary=True),
        format="raw",
        splits={split: Digits(indices) for split, indices in INDICES.items()},
        shard_samples=500,
    )


@dataclass(frozen=True)
class Digits:
    """The digits at some indices of scikit-learn's arrays."""

    indices: range

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, numbers: range) -> Iterator[Image]:
        digits = load_digits()
        for number in numbers:
            index = self.indices[number]
            pixels_HWC = digits.images[index].astype("uint8")[:, :, None]
            yield Image(pixels_HWC, label=str(digits.target[index]))
