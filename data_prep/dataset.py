"""What a converter knows: the images of a data set, by number, and what they are."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from numpy import ndarray

from attvae.data.manifest import Format, Split
from attvae.spec import DataSpec


class Image(NamedTuple):
    """An image of the source.

    Attributes:
        content: pixels [H, W, C], uint8 or uint16; or the bytes of an image file, which are kept as they are.
        label: the class, as its number or name.
        info: what else is known of the image, plain JSON.
    """

    content: ndarray | bytes
    label: str | None = None
    info: dict[str, object] | None = None


class Rejected(NamedTuple):
    """A file of the source that is left out, and why."""

    file: str
    reason: str


class Images(Protocol):
    """The images of a split, by number. Picklable: any process, on any host that sees the source, reads its part."""

    def __len__(self) -> int: ...

    def read(self, numbers: range) -> Iterator[Image | Rejected]:
        """One answer for each of `numbers`, in their order."""
        ...


@dataclass(frozen=True)
class Dataset:
    """A data set as its source holds it.

    Attributes:
        version: changes whenever the images or their order do; two versions of one name are not comparable.
        source: where the images come from, in words.
        identity: of the source's files (names, sizes, times of change): a preparation that was cut short goes on only
            where the source is still the same.
        spec: the images as they are delivered. Pixels of another size are scaled to it when they are written.
        format: of the stored images. Image files (`Image.content` as bytes) must be of this format already.
        any_size: image files are kept as they are, with sizes of their own: the loader scales them to the spec.
        shard_samples: images of a shard; those that are rejected leave it smaller.
    """

    name: str
    version: str
    source: str
    identity: str
    spec: DataSpec
    format: Format
    splits: Mapping[Split, Images]
    any_size: bool = False
    shard_samples: int = 1000
