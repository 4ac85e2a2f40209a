"""Tables of tiles: images, heat maps and short texts in rows and columns that have names."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from attvae.evaluation.chart import INK, shades
from attvae.evaluation.image_grid import seen

TILE_PX = 64
"""Smaller images are enlarged to about this size."""

Cell = Image.Image | str | None

_FONT_PX = 14
_TITLE_PX = 17
_GAP_PX = 4
_LINE_PX = 20
_MARGIN_PX = 10
_BAR = (180, 12)


class Scale(NamedTuple):
    """The colours' ends, and what they stand for with its unit."""

    low: str
    high: str
    label: str


def tile(image: Float[Tensor, "c h w"], white: float, px: int = TILE_PX) -> Image.Image:
    """An image as it is `seen`, enlarged without smoothing."""
    return _enlarged(seen(image, white), px)


def heat(values: Float[Tensor, "h w"], px: int = TILE_PX) -> Image.Image:
    """A map of numbers from 0 to 1."""
    return _enlarged(shades(values.detach().cpu().double().numpy()), px)


def marked(picture: Image.Image, at: tuple[float, float], size: tuple[int, int]) -> Image.Image:
    """A copy with a ring around the middle of the pixel (y, x), each in [0, 1), of a map of that height and width."""
    picture = picture.copy()
    y, x = ((int(place * pixels) + 0.5) / pixels for place, pixels in zip(at, size, strict=True))
    y, x = y * picture.height, x * picture.width
    draw = ImageDraw.Draw(picture)
    for radius, colour in ((7, "black"), (6, "white"), (5, "black")):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour)
    return picture


def draw_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Cell]]],
    *,
    notes: Sequence[str] = (),
    scale: Scale | None = None,
) -> Image.Image:
    """
    Args:
        columns: their names; "" for none.
        rows: of each, its name and its cells.
        notes: lines under the table.
        scale: of the heat maps.
    """
    font, large = ImageFont.load_default(_FONT_PX), ImageFont.load_default(_TITLE_PX)

    def wide(text: str) -> float:
        return font.getlength(text)

    side = max((wide(name) + _GAP_PX * 2 for name, _ in rows if name), default=0)
    widths = [
        max([wide(name) + 2 * _GAP_PX, *(_width(row[i], wide) for _, row in rows)]) for i, name in enumerate(columns)
    ]
    heights = [max(_LINE_PX if isinstance(c, str) or c is None else c.height for c in row) for _, row in rows]
    head = _LINE_PX if any(columns) else 0
    below = list(notes)
    width = max(
        side + sum(widths) + _GAP_PX * len(columns),
        large.getlength(title),
        *(wide(note) for note in below),
        0 if scale is None else _BAR[0] + wide(scale.low + scale.high + scale.label) + 6 * _GAP_PX,
    )
    height = 2 * _LINE_PX + head + sum(heights) + _GAP_PX * len(rows) + _LINE_PX * (len(below) + (scale is not None))
    picture = Image.new("RGB", (round(width) + 2 * _MARGIN_PX, height + _MARGIN_PX), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN_PX, _MARGIN_PX), title, fill=INK, font=large)

    lefts = np.cumsum([_MARGIN_PX + side, *(w + _GAP_PX for w in widths)])
    y = 2 * _LINE_PX
    for left, each, name in zip(lefts[:-1], widths, columns, strict=True):
        draw.text((left + each / 2, y + head - _GAP_PX), name, fill=INK, font=font, anchor="ms")
    y += head
    for (name, row), tall in zip(rows, heights, strict=True):
        draw.text((_MARGIN_PX + side - 2 * _GAP_PX, y + tall / 2), name, fill=INK, font=font, anchor="rm")
        for left, each, cell in zip(lefts[:-1], widths, row, strict=True):
            if isinstance(cell, str):
                draw.text((left + each / 2, y + tall / 2), cell, fill=INK, font=font, anchor="mm")
            elif cell is not None:
                picture.paste(cell, (round(left + (each - cell.width) / 2), y + (tall - cell.height) // 2))
        y += tall + _GAP_PX
    if scale is not None:
        _draw_scale(picture, draw, font, y, scale)
        y += _LINE_PX
    for note in below:
        draw.text((_MARGIN_PX, y + _LINE_PX / 2), note, fill=INK, font=font, anchor="lm")
        y += _LINE_PX
    return picture


def _draw_scale(
    picture: Image.Image,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    y: float,
    scale: Scale,
) -> None:
    x, middle = float(_MARGIN_PX), y + _LINE_PX / 2
    draw.text((x, middle), scale.low, fill=INK, font=font, anchor="lm")
    x += font.getlength(scale.low) + _GAP_PX
    ramp = shades(np.linspace(0, 1, _BAR[0]))[None].repeat(_BAR[1], axis=0)
    picture.paste(Image.fromarray(ramp), (round(x), round(middle - _BAR[1] / 2)))
    x += _BAR[0] + _GAP_PX
    draw.text((x, middle), scale.high, fill=INK, font=font, anchor="lm")
    draw.text((x + font.getlength(scale.high) + 3 * _GAP_PX, middle), scale.label, fill=INK, font=font, anchor="lm")


def _width(cell: Cell, wide: Callable[[str], float]) -> float:
    if cell is None:
        return 0
    return wide(cell) + 2 * _GAP_PX if isinstance(cell, str) else cell.width


def _enlarged(pixels: np.ndarray, px: int) -> Image.Image:
    factor = max(1, px // max(pixels.shape[:2]))
    return Image.fromarray(pixels.repeat(factor, axis=0).repeat(factor, axis=1))
