"""Images that lie in arrays: each process opens them at first use, so that no array ever travels."""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Integer, Shaped
from numpy import ndarray

from data_prep.dataset import Image


class Arrays(NamedTuple):
    """Images of one kind and their classes, in memory or mapped.

    Attributes:
        pixels_NHWC: uint8 or uint16, of any byte order and strides.
    """

    pixels_NHWC: Shaped[ndarray, "n h w c"]
    labels: Integer[ndarray, "n"] | None


@dataclass(frozen=True)
class ArrayImages:
    """The images of some arrays (`dataset.Images`).

    Attributes:
        open: gives the arrays; a function of a module, so that it can be pickled.
        arguments: of `open`.
        identity: of the files that it opens: a process that outlives a change of them opens them again.
    """

    open: Callable[..., Arrays]
    arguments: tuple[object, ...]
    identity: str
    images: int

    @classmethod
    def of(cls, open: Callable[..., Arrays], *arguments: object, identity: str) -> Self:
        """Opens the arrays once, to count them.

        Raises:
            What `open` raises.
        """
        return cls(open, arguments, identity, len(_opened(open, arguments, identity).pixels_NHWC))

    def __len__(self) -> int:
        return self.images

    def read(self, numbers: range) -> Iterator[Image]:
        pixels_NHWC, labels = _opened(self.open, self.arguments, self.identity)
        native = pixels_NHWC.dtype.newbyteorder("=")
        for number in numbers:
            pixels_HWC = np.array(pixels_NHWC[number], native, order="C")
            yield Image(pixels_HWC, None if labels is None else str(labels[number]))


# Enough for all files of the largest source: ten batches and val_data.
@lru_cache(maxsize=11)
def _opened(open: Callable[..., Arrays], arguments: tuple[object, ...], identity: str) -> Arrays:
    return open(*arguments)


@dataclass(frozen=True)
class Joined:
    """The images of several arrays, one after the other (`dataset.Images`)."""

    parts: tuple[ArrayImages, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def read(self, numbers: range) -> Iterator[Image]:
        ends = list(accumulate(map(len, self.parts)))
        for number in numbers:
            part = bisect_right(ends, number)
            start = ends[part] - len(self.parts[part])
            yield from self.parts[part].read(range(number - start, number - start + 1))
