"""32×32 RGB patches of scikit-learn's two sample photographs (427×640 pixels each).

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
from data_prep.dataset import Dataset, Image

PHOTOS = ("china.jpg", "flower.jpg")
HEIGHT = 427
PATCH = 32


@dataclass(frozen=True)
class Patches:
    """Patches of a band of columns of each photograph, row by row. The stride is from patch to patch, in pixels."""

    columns: range
    stride: int

    def __len__(self) -> int:
        rows, columns = self._grid()
        return len(PHOTOS) * len(rows) * len(columns)

    def read(self, numbers: range) -> Iterator[Image]:
        rows, columns = self._grid()
        for number in numbers:
            photo, place = divmod(number, len(rows) * len(columns))
            row, column = rows[place // len(columns)], columns[place % len(columns)]
            pixels_HWC = _load(PHOTOS[photo])[row : row + PATCH, column : column + PATCH]
            yield Image(pixels_HWC, info={"photo": PHOTOS[photo], "row": row, "column": column})

    def _grid(self) -> tuple[range, range]:
        """Where patches start: rows, columns."""
        last = self.columns.stop - PATCH
        return range(0, HEIGHT - PATCH + 1, self.stride), range(self.columns.start, last + 1, self.stride)


BANDS: dict[Split, Patches] = {
    "train": Patches(range(400), 3),
    "val": Patches(range(400, 480), PATCH),
    "test": Patches(range(480, 640), PATCH),
}


def dataset() -> Dataset:
    return Dataset(
        name="photos",
        version="1",
        source="sklearn.datasets.load_sample_image: china.jpg, flower.jpg (CC BY)",
        identity=f"scikit-learn {sklearn.__version__}",
        spec=DataSpec(height=PATCH, width=PATCH, channels=3, num_bits=8, max_value=255),
        format="raw",
        splits=BANDS,
        shard_samples=500,
    )


@lru_cache(maxsize=len(PHOTOS))
def _load(photo: str) -> UInt8[ndarray, "h w 3"]:
    return load_sample_image(photo)
