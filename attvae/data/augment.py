"""What is drawn at random for an image, by a generator that belongs to the sample and the visit."""

from typing import Literal

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray


def flip(
    pixels: UInt8[ndarray, "h w c"], axes: Literal["horizontal", "both"], draw: np.random.Generator
) -> UInt8[ndarray, "h w c"]:
    """Mirrors left-right, and for `both` also up-down, each with probability 1/2."""
    left_right, up_down = draw.random(2) < 0.5
    if left_right:
        pixels = pixels[:, ::-1]
    if up_down and axes == "both":
        pixels = pixels[::-1]
    return pixels


def binarise(pixels: UInt8[ndarray, "h w c"], max_value: int, draw: np.random.Generator) -> UInt8[ndarray, "h w c"]:
    """Ones with probability pixels / max_value: exact for 0 and max_value, since a draw lies in [0, 1)."""
    return (draw.random(pixels.shape) * max_value < pixels).astype(np.uint8)
