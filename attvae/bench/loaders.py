"""The three loaders that are compared, each as its users write it.

All of them read the same images, shuffle them, mirror each left-right and up-down with probability 1/2, and give
contiguous uint8 batches [B, C, H, W] with the images' numbers.
"""

import random
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import webdataset as wds
from numpy import ndarray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from attvae.data.config import DataConfig
from attvae.data.decode import Sample, decode
from attvae.data.loader import open_manifest, train_batches
from attvae.spec import DataSpec

Contender = Literal["attvae", "webdataset", "folder"]


class Task(NamedTuple):
    """What is to be loaded.

    Attributes:
        folder: as `PhotoCrops.make` leaves it.
        scaled_to: size of the delivered images; None for the stored one.
    """

    folder: Path
    scaled_to: int | None
    batch_size: int
    workers: int


def batches(contender: Contender, task: Task) -> Iterable[Any]:
    """Batches that begin with (images, numbers), for at least an epoch. Reading starts with the iteration."""
    match contender:
        case "attvae":
            return _attvae(task)
        case "webdataset":
            return _webdataset(task)
        case "folder":
            return _folder(task)


def files(contender: Contender, folder: Path) -> list[Path]:
    """What a loader reads."""
    return sorted((folder / "files").glob("*/*")) if contender == "folder" else sorted(folder.glob("shards/*.tar"))


def _config(task: Task) -> DataConfig:
    return DataConfig(path=str(task.folder / "shards"), workers=task.workers, size=task.scaled_to, flip="both")


def _attvae(task: Task) -> Iterable[Any]:
    config = _config(task)
    return train_batches(open_manifest(config), config, 0, 0, task.batch_size, 0, 1)


def _webdataset(task: Task) -> Iterable[Any]:
    """Shuffles shards, then samples in a buffer as large as the window of ours; batches in the worker."""
    config = _config(task)
    spec = open_manifest(config).spec
    shards = [str(path) for path in files("webdataset", task.folder)]
    dataset = (
        wds.WebDataset(shards, shardshuffle=len(shards))
        .shuffle(config.window)
        .map(partial(_decoded_and_flipped, spec=spec, scale=task.scaled_to is not None))
        .batched(task.batch_size)
    )
    return wds.WebLoader(dataset, batch_size=None, num_workers=task.workers, multiprocessing_context=_start(task))


def _decoded_and_flipped(sample: Sample, spec: DataSpec, scale: bool) -> tuple[ndarray, int]:
    pixels = decode(sample, spec, scale=scale)["pixels"]
    if random.random() < 0.5:
        pixels = pixels[:, ::-1]
    if random.random() < 0.5:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)), int(sample["__key__"])


def _folder(task: Task) -> Iterable[Any]:
    dataset = ImageFolder(files("folder", task.folder), task.scaled_to)
    return DataLoader(
        dataset, task.batch_size, shuffle=True, num_workers=task.workers, multiprocessing_context=_start(task)
    )


class ImageFolder(Dataset):
    """One file an image, read by Pillow."""

    def __init__(self, paths: list[Path], scaled_to: int | None) -> None:
        self._paths = [str(path) for path in paths]
        self._scaled_to = scaled_to

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self._paths[index]) as file:
            image = file.convert("RGB")
        if self._scaled_to:
            image = image.reduce(image.width // self._scaled_to)  # a box filter
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), index


def _start(task: Task) -> str | None:
    """Workers are forked, as the default is where nobody set another: here a spawned process inherits "spawn"."""
    return "fork" if task.workers else None
