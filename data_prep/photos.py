"""Square RGB patches of scikit-learn's two sample photographs (427×640 pixels each).

Bands of columns separate the splits, so no pixel is shared. Patches of val and test tile their band, each pixel once.
Those of train overlap: the stride is odd, so that textures come at every alignment to the grids of a model that
halves its resolution, and small enough that a short training rarely meets a patch twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import sklearn
from jaxtyping import UInt8
from numpy import ndarray
from sklearn.datasets import load_sample_image

from attvae.data.manifest import Split
from attvae.spec import DataSpec
from data_prep.dataset import Dataset, Image, Images

PHOTOS = ("china.jpg", "flower.jpg")
HEIGHT = 427
TRAIN_STRIDE = 3
BANDS: dict[Split, range] = {"train": range(400), "val": range(400, 480), "test": range(480, 640)}


@dataclass(frozen=True)
class Patches:
    """Patches of a band of columns of each photograph, row by row. Size and stride, from patch to patch, in pixels."""

    columns: range
    size: int
    stride: int

    def __len__(self) -> int:
        rows, columns = self._grid()
        return len(PHOTOS) * len(rows) * len(columns)

    def read(self, numbers: range) -> Iterator[Image]:
        rows, columns = self._grid()
        for number in numbers:
            photo, place = divmod(number, len(rows) * len(columns))
            row, column = rows[place // len(columns)], columns[place % len(columns)]
            pixels_HWC = _load(PHOTOS[photo])[row : row + self.size, column : column + self.size]
            yield Image(pixels_HWC, info={"photo": PHOTOS[photo], "row": row, "column": column})

    def _grid(self) -> tuple[range, range]:
        """Where patches start: rows, columns."""
        last = self.columns.stop - self.size
        return range(0, HEIGHT - self.size + 1, self.stride), range(self.columns.start, last + 1, self.stride)


def dataset(size: int) -> Dataset:
    """Patches of so many pixels on each side.

    Raises:
        ValueError: they do not fit into the narrowest band.
    """
    narrowest = min(map(len, BANDS.values()))
    if size > narrowest:
        raise ValueError(f"--size {size}: the narrowest band of the photographs has {narrowest} columns; at most those")
    splits: dict[Split, Images] = {
        split: Patches(columns, size, TRAIN_STRIDE if split == "train" else size) for split, columns in BANDS.items()
    }
    return Dataset(
        name="photos",
        version="1",
        source="sklearn.datasets.load_sample_image: china.jpg, flower.jpg (CC BY)",
        identity=f"scikit-learn {sklearn.__version__}",
        spec=DataSpec(height=size, width=size, channels=3, num_bits=8, max_value=255),
        format="raw",
        splits=splits,
        shard_samples=500,
    )


@lru_cache(maxsize=len(PHOTOS))
def _load(photo: str) -> UInt8[ndarray, "h w 3"]:
    return load_sample_image(photo)
