"""Small data sets, written as the preparation writes them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from array_images import ArrayImages, array_dataset

from attvae.data.manifest import Format, Manifest
from data_prep.writer import prepare


@pytest.fixture
def prepare_images(tmp_path: Path) -> Callable[..., Manifest]:
    """Prepares images [N, H, W, C] as train (and val and test) in shards of 5."""

    def prepare_images(
        images: np.ndarray, max_value: int = 255, binary: bool = False, format: Format = "raw"
    ) -> Manifest:
        dataset = array_dataset(ArrayImages(images, label="7"), format=format, max_value=max_value)
        spec = dataset.spec.model_copy(update={"binary": binary})
        prepare(replace(dataset, spec=spec), tmp_path / "images")
        return Manifest.read(tmp_path / "images")

    return prepare_images


@pytest.fixture
def images() -> np.ndarray:
    """23 images of noise: five shards, the last one smaller."""
    return np.random.default_rng(0).integers(0, 256, (23, 4, 6, 3), dtype=np.uint8)
