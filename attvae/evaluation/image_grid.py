"""Pictures of many images: tiles, labelled panels, PNG files."""

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Num, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from attvae.evaluation.chart import ALARM

_TILE_PX = 64  # smaller images are enlarged to about this size
_GAP_PX = 2
_LABEL_PX = 16
_GREY = 128  # between tiles: neither ink nor paper of any data set


def draw_grid(images: Num[Tensor, "n c h w"], white: float) -> Image.Image:
    """Tiles images, as they are `seen`, row by row into a square, small ones enlarged by a whole factor.

    Raises:
        ValueError: there is no image.
    """
    if len(images) == 0:
        raise ValueError(f"cannot draw images of shape {tuple(images.shape)}: there is none")
    return Image.fromarray(np.concatenate(list(grid_bands([seen(image, white) for image in images], len(images)))))


def seen(image: Num[Tensor, "c h w"], white: float) -> UInt8[ndarray, "h w 3"]:
    """One channel is grey, two are red and green, of more the first three are taken; no number is orange.

    Args:
        white: the value that is white, 0 being black.
    """
    values = image.detach().cpu().double().numpy().transpose(1, 2, 0)[:, :, :3] / white
    height, width, channels = values.shape
    if channels == 1:
        values = values.repeat(3, axis=2)
    elif channels == 2:
        values = np.concatenate([values, np.zeros((height, width, 1))], axis=2)
    good = np.isfinite(values).all(axis=2, keepdims=True)
    return np.where(good, np.where(good, values, 0).clip(0, 1) * 255, ALARM).round().astype(np.uint8)


def grid_size(n: int, height: int, width: int) -> tuple[int, int]:
    """Width and height of a grid of n images of that size."""
    factor, columns = _layout(n, height, width)
    rows = math.ceil(n / columns)
    return columns * (width * factor + _GAP_PX) + _GAP_PX, rows * (height * factor + _GAP_PX) + _GAP_PX


def grid_bands(images: Iterable[UInt8[ndarray, "h w c"]], n: int) -> Iterator[UInt8[ndarray, "rows gw c"]]:
    """The grid of n images from top to bottom, a row of tiles at a time: as much of it as is held at once."""
    images = iter(images)
    for above in itertools.count():
        row = list(itertools.islice(images, math.ceil(math.sqrt(n))))
        if not row:
            return
        height, width, channels = row[0].shape
        factor, columns = _layout(n, height, width)
        step_y, step_x, top = height * factor + _GAP_PX, width * factor + _GAP_PX, 0 if above else _GAP_PX
        band = np.full((step_y + top, columns * step_x + _GAP_PX, channels), _GREY, dtype=np.uint8)
        for column, image in enumerate(row):
            x = column * step_x + _GAP_PX
            tile = image.repeat(factor, axis=0).repeat(factor, axis=1)
            band[top : top + height * factor, x : x + width * factor] = tile
        yield band


def _layout(n: int, height: int, width: int) -> tuple[int, int]:
    """The factor by which tiles are enlarged, and the number of columns."""
    return max(1, _TILE_PX // max(height, width)), math.ceil(math.sqrt(n))


def side_by_side(panels: Mapping[str, Image.Image]) -> Image.Image:
    """Puts pictures next to each other, each under its label."""
    width = sum(panel.width for panel in panels.values()) + _LABEL_PX * (len(panels) - 1)
    height = max(panel.height for panel in panels.values()) + 2 * _LABEL_PX
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    x = 0
    for label, panel in panels.items():
        draw.text((x + _GAP_PX, _LABEL_PX // 2), label, fill="black", font=ImageFont.load_default(_LABEL_PX))
        picture.paste(panel, (x, 2 * _LABEL_PX))
        x += panel.width + _LABEL_PX
    return picture


def save_png(picture: Image.Image, path: Path) -> None:
    """Writes a PNG whole or not at all; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    picture.save(aside, format="PNG")
    os.replace(aside, path)
