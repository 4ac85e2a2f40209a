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

_TILE_PX = 64  # smaller images are enlarged to about this size
_GAP_PX = 2
_LABEL_PX = 16
_GREY = 128  # between tiles: neither ink nor paper of any data set


def draw_grid(images: Num[Tensor, "n c h w"]) -> Image.Image:
    """Tiles images row by row into a square, small ones enlarged by a whole factor without smoothing.

    Args:
        images: whole numbers 0..255, or {0, 1} throughout, which become black and white; one channel or three.

    Raises:
        ValueError: there is no image, or the channels are neither 1 nor 3.
    """
    n, channels = images.shape[:2]
    if n == 0 or channels not in (1, 3):
        raise ValueError(f"cannot draw images of shape {tuple(images.shape)}: expected n >= 1 and 1 or 3 channels")
    pixels = images.detach().cpu().numpy().transpose(0, 2, 3, 1)
    pixels = (pixels * 255 if pixels.max() <= 1 else pixels).astype(np.uint8)

    canvas = np.concatenate(list(grid_bands(pixels, n)))
    return Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)


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
