"""Small data sets, written as the preparation writes them."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from attvae.data.manifest import Manifest
from attvae.spec import DataSpec
from data_prep import writer


@pytest.fixture
def prepare_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Manifest]:
    """Prepares images [N, H, W, C] as train (and val and test) in shards of 5."""
    monkeypatch.setattr(writer, "SHARD_SAMPLES", 5)

    def prepare(images: np.ndarray, max_value: int = 255, binary: bool = False) -> Manifest:
        def samples() -> Iterator[dict[str, bytes]]:
            for image in images:
                file = io.BytesIO()
                np.save(file, image)
                yield {"npy": file.getvalue(), "cls": b"7"}

        _, height, width, channels = images.shape
        spec = DataSpec(height=height, width=width, channels=channels, num_bits=8, max_value=max_value, binary=binary)
        splits = {"train": samples, "val": samples, "test": samples}
        writer.prepare(writer.Dataset("images", "1", "a test", spec, splits), tmp_path / "images")
        return Manifest.read(tmp_path / "images")

    return prepare


@pytest.fixture
def images() -> np.ndarray:
    """23 images of noise: five shards, the last one smaller."""
    return np.random.default_rng(0).integers(0, 256, (23, 4, 6, 3), dtype=np.uint8)
