"""A sheet for charts: one size for all steps and runs, ink, text, and colours that the colour-blind tell apart."""

import numpy as np
from jaxtyping import Float, UInt8
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont

SIZE = (720, 400)
INK = (30, 30, 30)
PALE = (225, 225, 225)
BAR = (38, 110, 150)
ALARM = (213, 94, 0)
"""Of what is not a number."""

_FONT_PX = 18
_STOPS = np.array([(48, 18, 90), (45, 80, 140), (35, 140, 135), (110, 195, 85), (250, 225, 60)])
"""From 0 to 1 in equal steps: the lightness rises throughout, so that order shows in grey as well."""


class Sheet:
    """A white page that is drawn on; places are (x, y) in pixels from the top left."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", SIZE, "white")
        self.draw = ImageDraw.Draw(self.image)
        self._font = ImageFont.load_default(_FONT_PX)

    def text(self, x: float, y: float, text: str, anchor: str) -> None:
        """Text at a point; the anchor's two letters are Pillow's, e.g. "la" for its left end and top."""
        self.draw.text((x, y), text, fill=INK, font=self._font, anchor=anchor)

    def box(self, left: float, top: float, right: float, bottom: float, fill: tuple[int, int, int]) -> None:
        """A filled rectangle, right and bottom excluded; nothing if it is thinner than a pixel."""
        left, top, right, bottom = round(left), round(top), round(right), round(bottom)
        if right > left and bottom > top:
            self.draw.rectangle((left, top, right - 1, bottom - 1), fill=fill)


def shade(value: float) -> tuple[int, int, int]:
    """The colour of a number from 0 to 1; ALARM for one that is not."""
    red, green, blue = shades(np.array(value)).tolist()
    return red, green, blue


def shades(values: Float[ndarray, "..."]) -> UInt8[ndarray, "... 3"]:
    """`shade` of each number."""
    places = np.linspace(0, 1, len(_STOPS))
    colours = np.stack([np.interp(values, places, stop) for stop in _STOPS.T], axis=-1).round()
    good = (values >= 0) & (values <= 1.000001)
    return np.where(good[..., None], colours, ALARM).astype(np.uint8)


def labelled(count: int, step_px: float, least_px: float = 30) -> range:
    """Which of `count` marks at equal distances get a label, so that labels stand at least so far apart."""
    return range(0, count, next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if step * step_px >= least_px))
