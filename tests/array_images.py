"""Images that are there as an array: the smallest source of a data set."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from attvae.data.manifest import Format
from attvae.spec import DataSpec
from data_prep.dataset import Dataset, Image, Rejected


@dataclass(frozen=True)
class ArrayImages:
    """Images [N, H, W, C], all with one label; some of them are rejected."""

    pixels: np.ndarray
    label: str | None = None
    rejected: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, numbers: range) -> Iterator[Image | Rejected]:
        for number in numbers:
            if number in self.rejected:
                yield Rejected(f"{number}.bmp", "damaged")
            else:
                yield Image(self.pixels[number], self.label, {"number": number} if self.label is None else None)


@dataclass(frozen=True)
class SlowImages(ArrayImages):
    """Read at the pace of larger ones."""

    seconds: float = 0.01

    def read(self, numbers: range) -> Iterator[Image | Rejected]:
        for image in super().read(numbers):
            time.sleep(self.seconds)
            yield image


def array_dataset(images: ArrayImages, name: str = "images", format: Format = "raw", max_value: int = 255) -> Dataset:
    """The same images as train, val and test, in shards of 5."""
    _, height, width, channels = images.pixels.shape
    bits = 8 if images.pixels.dtype == np.uint8 else 16
    spec = DataSpec(height=height, width=width, channels=channels, num_bits=bits, max_value=max_value)
    splits = {"train": images, "val": images, "test": images}
    return Dataset(name, "1", "a test", "never changes", spec, format, splits, shard_samples=5)
