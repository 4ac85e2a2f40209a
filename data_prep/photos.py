"""32×32 RGB patches of scikit-learn's two sample photographs (427×640 pixels each).

Bands of columns separate the splits, so no pixel is shared. Patches of val and test tile their band, each pixel once.
Those of train overlap: the stride is odd, so that textures come at every alignment to the grids of a model that
halves its resolution, and small enough that a short training rarely meets a patch twice.
"""

import json
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from sklearn.datasets import load_sample_image

from attvae.data.manifest import Split
from attvae.spec import DataSpec
from data_prep.writer import Dataset, Members, npy

PHOTOS = ("china.jpg", "flower.jpg")
PATCH = 32


class Band(NamedTuple):
    """Columns of each photograph, and the step from patch to patch, both in pixels."""

    columns: range
    stride: int


BANDS: dict[Split, Band] = {
    "train": Band(range(400), 3),
    "val": Band(range(400, 480), PATCH),
    "test": Band(range(480, 640), PATCH),
}


def dataset() -> Dataset:
    return Dataset(
        name="photos",
        version="1",
        source="sklearn.datasets.load_sample_image: china.jpg, flower.jpg (CC BY)",
        spec=DataSpec(height=PATCH, width=PATCH, channels=3, num_bits=8, max_value=255),
        splits={split: partial(_patches, band) for split, band in BANDS.items()},
    )


def _patches(band: Band) -> Iterator[Members]:
    for photo in PHOTOS:
        pixels_HWC = load_sample_image(photo)
        for row in range(0, pixels_HWC.shape[0] - PATCH + 1, band.stride):
            for column in range(band.columns.start, band.columns.stop - PATCH + 1, band.stride):
                place = {"photo": photo, "row": row, "column": column}
                patch_HWC = pixels_HWC[row : row + PATCH, column : column + PATCH]
                yield {"npy": npy(patch_HWC), "json": json.dumps(place).encode()}
