"""One shard of a data set: a webdataset tar. The same images give the same bytes."""

import io
import json
import tarfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import xxhash

from attvae.data.manifest import CHECKSUM_GROUP, Split, xxh3
from attvae.data.shard import Shard
from attvae.spec import Config
from data_prep.atomic import aside
from data_prep.dataset import Dataset, Image, Rejected
from data_prep.encode import EXTENSION, encode


class Place(NamedTuple):
    """Which shard of a data set: number k of a split holds the images from k * shard_samples on."""

    split: Split
    number: int


class ShardReport(Config):
    """What became of the images of a shard. Where all of them were rejected, there is no shard."""

    place: Place
    shard: Shard | None
    rejected: tuple[Rejected, ...]

    @property
    def images(self) -> int:
        return (self.shard.samples if self.shard else 0) + len(self.rejected)

    @property
    def bytes(self) -> int:
        return self.shard.bytes if self.shard else 0


def places(dataset: Dataset) -> list[Place]:
    """All shards of a data set."""
    return [
        Place(split, number)
        for split, images in dataset.splits.items()
        for number in range(-(-len(images) // dataset.shard_samples))
    ]


def file_name(place: Place) -> str:
    return f"{place.split}-{place.number:06d}.tar"


def write_shard(dataset: Dataset, out: Path, place: Place) -> ShardReport:
    """Writes a shard into `out`. A sample's key is its number in the split, so that rejected images leave gaps.

    Raises:
        ValueError: an image that is not what the data set says; names it.
        OSError: `out` cannot be written.
    """
    rejected: list[Rejected] = []
    samples = _accepted(dataset, place, rejected)
    if (first := next(samples, None)) is None:
        return ShardReport(place=place, shard=None, rejected=tuple(rejected))
    written = 0
    path = out / file_name(place)
    # USTAR: nothing of the time, the user or the machine is in its headers.
    with aside(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, image in chain([first], samples):
            for extension, content in _members(dataset, place.split, key, image):
                tar.addfile(_header(f"{key:09d}.{extension}", content), io.BytesIO(content))
            written += 1
    shard = Shard(file=path.name, samples=written, bytes=path.stat().st_size, xxh3=xxh3(path))
    return ShardReport(place=place, shard=shard, rejected=tuple(rejected))


def _accepted(dataset: Dataset, place: Place, rejected: list[Rejected]) -> Iterator[tuple[int, Image]]:
    """The images of a shard with their numbers; the others are added to `rejected`."""
    images = dataset.splits[place.split]
    first = place.number * dataset.shard_samples
    numbers = range(first, min(first + dataset.shard_samples, len(images)))
    for number, image in zip(numbers, images.read(numbers), strict=True):
        if isinstance(image, Rejected):
            rejected.append(image)
        else:
            yield number, image


def _members(dataset: Dataset, split: Split, number: int, image: Image) -> Iterator[tuple[str, bytes]]:
    """(extension, content) of the files of a sample."""
    if isinstance(image.content, bytes):
        assert dataset.format != "raw", f"{dataset.name} gives image files for --format raw"
        content = image.content
    else:
        try:
            content = encode(image.content, dataset.spec, dataset.format)
        except ValueError as error:
            known = f" {json.dumps(image.info)}" if image.info else ""
            raise ValueError(f"image {number} of {split}{known}: {error}") from None
    yield EXTENSION[dataset.format], content
    if image.label is not None:
        yield "cls", image.label.encode()
    if image.info is not None:
        yield "json", json.dumps(image.info).encode()


def _header(name: str, content: bytes) -> tarfile.TarInfo:
    """The owner's name is the content's checksum: the loader checks it, tar and webdataset ignore it."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    header.mode = 0o444
    header.uname = xxhash.xxh3_64_hexdigest(content)
    header.gname = CHECKSUM_GROUP
    return header
