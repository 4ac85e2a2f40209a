"""Pictures of many images: tiles, labelled panels, PNG files."""

import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Num
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
    n, channels, height, width = images.shape
    if n == 0 or channels not in (1, 3):
        raise ValueError(f"cannot draw images of shape {tuple(images.shape)}: expected n >= 1 and 1 or 3 channels")
    pixels = images.detach().cpu().numpy().transpose(0, 2, 3, 1)
    pixels = (pixels * 255 if pixels.max() <= 1 else pixels).astype(np.uint8)

    factor = max(1, _TILE_PX // max(height, width))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    step_y, step_x = height * factor + _GAP_PX, width * factor + _GAP_PX
    canvas = np.full((rows * step_y + _GAP_PX, columns * step_x + _GAP_PX, channels), _GREY, dtype=np.uint8)
    for index, tile in enumerate(pixels):
        y, x = index // columns * step_y + _GAP_PX, index % columns * step_x + _GAP_PX
        canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    return Image.fromarray(canvas[:, :, 0] if channels == 1 else canvas)


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
