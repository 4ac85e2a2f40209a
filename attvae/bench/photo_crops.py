"""Test images: random crops of scikit-learn's two photographs, at random scales, as files and as shards of them."""

from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from sys import stderr

import numpy as np
from PIL import Image as Picture
from sklearn.datasets import load_sample_image

from attvae.data.manifest import Format
from attvae.spec import DataSpec
from data_prep import process_pool
from data_prep.dataset import Dataset, Image
from data_prep.progress import Progress
from data_prep.writer import prepare

FOLDER_IMAGES = 1000
"""Images of a class folder; also of a shard, unless that would give fewer than two for each of two workers."""
PROCESSES = 2


@dataclass(frozen=True)
class PhotoCrops:
    """`count` different square images, of size × size pixels, RGB.

    Attributes:
        format: of the shards. The files are JPEG for "jpg" (quality 90, colours at half resolution, as photographs
            mostly are), PNG otherwise.
    """

    count: int
    size: int
    format: Format

    def make(self, folder: Path) -> None:
        """Writes `folder`/files/CLASS/NUMBER.EXTENSION and the same images as shards in `folder`/shards.

        What is there already is left as it is. Says on stderr how far it is.
        """
        files = folder / "files"
        files.mkdir(parents=True, exist_ok=True)
        waiting = [number for number in range(-(-self.count // FOLDER_IMAGES)) if not (files / _name(number)).exists()]
        with redirect_stdout(stderr):
            progress = Progress(len(waiting) * FOLDER_IMAGES)
            for size in process_pool.spread(partial(self._write_folder, files), waiting, PROCESSES):
                progress.add(FOLDER_IMAGES, size)
            progress.close()
            prepare(self._dataset(files), folder / "shards", PROCESSES)

    def _write_folder(self, files: Path, number: int) -> int:
        """Writes a class folder; returns its bytes."""
        partial_folder = files / f"{_name(number)}.tmp"
        partial_folder.mkdir(exist_ok=True)
        written = 0
        for image in range(number * FOLDER_IMAGES, min((number + 1) * FOLDER_IMAGES, self.count)):
            path = partial_folder / _file(image, self.format).name
            if self.format == "jpg":
                _crop(image, self.size).save(path, quality=90, subsampling="4:2:0")
            else:
                _crop(image, self.size).save(path)
            written += path.stat().st_size
        partial_folder.rename(files / _name(number))
        return written

    def _dataset(self, files: Path) -> Dataset:
        return Dataset(
            name="photo-crops",
            version="1",
            source="random crops of sklearn.datasets.load_sample_image: china.jpg, flower.jpg (CC BY)",
            identity=f"{self.count} images",
            spec=DataSpec(height=self.size, width=self.size, channels=3, num_bits=8, max_value=255),
            format=self.format,
            splits={"train": _Files(files, self.count, self.format)},
            shard_samples=min(FOLDER_IMAGES, -(-self.count // 4)),
        )


@dataclass(frozen=True)
class _Files:
    """The files, as the preparation reads them: without labels, so that a sample is one member of a tar."""

    folder: Path
    count: int
    format: Format

    def __len__(self) -> int:
        return self.count

    def read(self, numbers: range) -> Iterator[Image]:
        for number in numbers:
            path = self.folder / _file(number, self.format)
            if self.format == "raw":
                with Picture.open(path) as picture:
                    yield Image(np.asarray(picture))
            else:
                yield Image(path.read_bytes())


def _name(folder: int) -> str:
    return f"{folder:04d}"


def _file(image: int, format: Format) -> Path:
    return Path(_name(image // FOLDER_IMAGES), f"{image:09d}.{'jpg' if format == 'jpg' else 'png'}")


def _crop(image: int, size: int) -> Picture.Image:
    draw = np.random.default_rng([size, image])
    photo = _photos()[draw.integers(2)]
    side = draw.uniform(size, photo.height)
    left, top = draw.uniform(0, photo.width - side), draw.uniform(0, photo.height - side)
    return photo.resize((size, size), Picture.Resampling.BILINEAR, (left, top, left + side, top + side))


@lru_cache(maxsize=1)
def _photos() -> tuple[Picture.Image, ...]:
    return tuple(Picture.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg"))
