"""Images that are to be coded, from files or from a prepared data set, and pictures of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Shaped
from numpy import ndarray
from PIL import Image
from torch import Tensor

from attvae.compression.file_format import check_name
from attvae.data.augment import channels_first
from attvae.data.config import DataConfig
from attvae.data.image_file import read_pixels
from attvae.data.loader import eval_batches
from attvae.data.manifest import Manifest, Split
from attvae.data.shard import DamagedError
from attvae.evaluation_noise import EVALUATION_SEED
from attvae.spec import DataSpec

READ_AT_ONCE = 64


class CodedImage(NamedTuple):
    """Raw pixels [C, H, W] as the model takes them; `id` and `draw` say which noise of evaluations is theirs."""

    x: Shaped[Tensor, "c h w"]
    id: int
    draw: int


class ImageFiles:
    """Image files, in the order of their names."""

    def __init__(self, places: Sequence[Path], spec: DataSpec) -> None:
        """
        Args:
            places: files, or folders of nothing but image files.

        Raises:
            ValueError: there are none, one is no file, is there twice or has a name that cannot be kept, two would
                have the same name, or pictures of this spec cannot be files.
        """
        check_pictures(spec)
        self._spec = spec
        self._files: dict[str, Path] = {}
        for file in [file for place in places for file in _files(place)]:
            name = f"{file.stem}.png"
            try:
                check_name(name)
            except ValueError as error:
                raise ValueError(f"{file} cannot come back as {name!r} ({error}): rename it") from None
            if (other := self._files.get(name)) == file:
                raise ValueError(f"{file} is named twice: name it once")
            if other:
                raise ValueError(f"{other} and {file} would both come back as {name}: rename one of them")
            self._files[name] = file
        if not self._files:
            raise ValueError(f"no images in {', '.join(map(str, places))}: name image files, or a folder of them")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._files))

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[CodedImage]:
        """
        Raises:
            ValueError: a file cannot be read, or is not an image that the model takes.
        """
        for number, name in enumerate(self.names):
            file = self._files[name]
            try:
                x = torch.from_numpy(channels_first(self._fitting(read_pixels(file.read_bytes()))[None])[0])
            except OSError as error:
                raise ValueError(f"cannot read {file}: {error.strerror}") from error
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from None
            yield CodedImage(x, number, 0)

    def _fitting(self, pixels: Shaped[ndarray, "h w c"]) -> Shaped[ndarray, "h w c"]:
        spec = self._spec
        expected = (spec.height, spec.width, spec.channels)
        bits, expected_bits = pixels.itemsize * 8, 8 if spec.num_bits <= 8 else 16
        if pixels.shape != expected or bits != expected_bits:
            raise ValueError(
                f"the image has height, width, channels {pixels.shape} and {bits} bits a value, but the model takes "
                f"{expected} and {expected_bits} bits"
            )
        if spec.binary:
            if not np.isin(pixels, (0, 255)).all():
                raise ValueError("the model takes black and white (values 0 and 255), the image has greys")
            return pixels // 255
        if pixels.max() > spec.max_value:
            raise ValueError(f"the model takes values 0 to {spec.max_value}, the image has {pixels.max()}")
        return pixels


class DataSplit:
    """A split of a prepared data set, in its order; binary data as evaluations draw it, `draws` times."""

    names = None

    def __init__(self, config: DataConfig, manifest: Manifest, split: str, draws: int, spec: DataSpec) -> None:
        """
        Raises:
            ValueError: no such split, an empty one, or images that are not the model's.
        """
        check_pictures(spec)
        self._config, self._manifest = config, manifest
        if manifest.spec != spec:
            raise ValueError(f"the model takes {spec!r}, but {config.path} holds {manifest.spec!r}")
        if draws > 1 and not spec.binary:
            raise ValueError(
                "--draws is for binary data, which is drawn anew each time: other images are what they are"
            )
        if split not in manifest.splits:
            raise ValueError(f"{config.path} has no split {split!r}, only {', '.join(manifest.splits)}")
        self._split: Split = split
        self._draws = draws
        self._samples = manifest.samples(self._split)

    def __len__(self) -> int:
        return self._samples * self._draws

    def __iter__(self) -> Iterator[CodedImage]:
        """
        Raises:
            ValueError: an image is missing or damaged.
        """
        try:
            for draw in range(self._draws):
                yield from self._drawn(draw)
        except DamagedError as error:
            raise ValueError(f"{error}: prepare the data again") from error

    def _drawn(self, draw: int) -> Iterator[CodedImage]:
        batches = eval_batches(
            self._manifest, self._config, self._split, EVALUATION_SEED, draw, READ_AT_ONCE, rank=0, world_size=1
        )
        for batch in batches:
            for x, number, weight in zip(batch.x, batch.ids.tolist(), batch.weights.tolist(), strict=True):
                if weight:
                    yield CodedImage(x, number, draw)


def check_pictures(spec: DataSpec) -> None:
    """
    Raises:
        ValueError: PNG files cannot hold images of this spec.
    """
    if spec.channels not in (1, 3, 4) or (spec.num_bits > 8 and spec.channels > 1):
        raise ValueError(
            f"images come back as PNG: grey of up to 16 bits, colour of up to 8, not {spec.channels} channels of "
            f"{spec.num_bits} bits"
        )


def picture(x: Shaped[Tensor, "c h w"], spec: DataSpec) -> Image.Image:
    """What is written to files: ones of binary images are white."""
    pixels = x.permute(1, 2, 0).contiguous().numpy()
    if spec.binary and spec.channels == 1:
        return Image.fromarray(pixels[:, :, 0] * 255).convert("1")
    if spec.binary:
        pixels = pixels * 255
    return Image.fromarray(pixels[:, :, 0] if spec.channels == 1 else pixels)


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise ValueError(f"{place} is neither a file nor a folder")
    entries = sorted(entry for entry in place.iterdir() if not entry.name.startswith("."))
    if folder := next((entry for entry in entries if not entry.is_file()), None):
        raise ValueError(f"{folder} is no image file: name a folder that holds nothing but images")
    return entries
