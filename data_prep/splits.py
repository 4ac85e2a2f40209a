"""How the splits of a source come about where it does not say: one rule for all data sets.

A source's training images are put in one fixed random order; the last tenth of them, at most 10,000, is `val`. A source
without test images gives the tenth before that (again at most 10,000) to `test`. Shards thus hold mixed classes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from attvae.data.manifest import Split
from data_prep.dataset import Image, Images, Rejected

LARGEST_CUT = 10_000


def fixed_order(images: int) -> Int64[ndarray, "n"]:
    """A permutation that never changes: numpy promises to keep Philox's raw stream as it is."""
    return np.argsort(np.random.Philox(key=np.zeros(2, np.uint64)).random_raw(images), kind="stable")


def cut_size(images: int) -> int:
    """How many of a source's images `val`, or `test`, takes.

    Raises:
        ValueError: there are too few to cut from.
    """
    if images < 10:
        raise ValueError(f"{images} images are too few for the splits train, val and test: at least 10 are needed")
    return min(LARGEST_CUT, images // 10)


@dataclass(frozen=True, eq=False)
class Chosen:
    """Some images of a source, in an order of their own."""

    images: Images
    numbers: Int64[ndarray, "n"]

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, numbers: range) -> Iterator[Image | Rejected]:
        chosen = self.numbers[numbers.start : numbers.stop : numbers.step].tolist()
        # Neighbours are asked for together: a source may read them in one go.
        for _, run in groupby(enumerate(chosen), lambda place: place[1] - place[0]):
            first = [number for _, number in run]
            yield from self.images.read(range(first[0], first[-1] + 1))


def train_and_val(images: Images) -> dict[Split, Images]:
    """A source's training images, parted into train and val."""
    order, cut = fixed_order(len(images)), cut_size(len(images))
    return {"train": Chosen(images, order[:-cut]), "val": Chosen(images, order[-cut:])}


def train_val_and_test(images: Images) -> dict[Split, Images]:
    """A source without test images, parted into all three splits."""
    order, cut = fixed_order(len(images)), cut_size(len(images))
    return {
        "train": Chosen(images, order[: -2 * cut]),
        "val": Chosen(images, order[-cut:]),
        "test": Chosen(images, order[-2 * cut : -cut]),
    }


def complete(given: Mapping[Split, Images]) -> dict[Split, Images]:
    """The splits that a source names, of which `train` must be one; those that it lacks are cut from train.

    Where only `test` is lacking, it is what the rule cuts for val. All of train is put in the fixed order.
    """
    train = given["train"]
    match "val" in given, "test" in given:
        case True, True:
            parts: dict[Split, Images] = {"train": Chosen(train, fixed_order(len(train)))}
        case True, False:
            cut = train_and_val(train)
            parts = {"train": cut["train"], "test": cut["val"]}
        case False, True:
            parts = train_and_val(train)
        case _:
            parts = train_val_and_test(train)
    return parts | {split: images for split, images in given.items() if split != "train"}
