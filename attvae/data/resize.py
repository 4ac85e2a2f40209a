"""Any image to a square of the wanted size: the largest centre square, scaled with a box filter.

A pixel of the result is the mean over the area that it covers, rounded once. Pillow's filter of this name counts a
pixel that lies across an edge to one side only, and rounds twice, so that even a halving is often one grey level off.
"""

from itertools import pairwise

import numpy as np
from jaxtyping import Integer, Shaped
from numpy import ndarray
from PIL import Image


def centre_square(pixels: Shaped[ndarray, "h w c"], size: int) -> Shaped[ndarray, "size size c"]:
    """The largest centre square of an image, scaled to size × size: the mean over each box's area, halves rounded up.

    Args:
        pixels: uint8 or uint16.
    """
    height, width, channels = pixels.shape
    if (height, width) == (size, size):
        return pixels
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    factor, rest = divmod(side, size)
    if pixels.dtype == np.uint8 and channels in (1, 3) and rest == 0 and factor.bit_count() == 1:
        # Ten times as fast, and exact for powers of two, whose reciprocals Pillow's fixed-point numbers hold. (Its
        # RGBA weighs colours by alpha.)
        image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
        return np.asarray(image.reduce(factor, (left, top, left + side, top + side))).reshape(size, size, channels)
    square = pixels[top : top + side, left : left + side].reshape(side, -1)
    rows = _box_sums(square.astype(np.int32), size).reshape(size, side, channels)
    columns = rows.swapaxes(0, 1).reshape(side, -1)
    sums = _box_sums(columns.astype(np.int64), size).reshape(size, size, channels).swapaxes(0, 1)
    # Sums are whole numbers far below 2**53: the division is the only rounding before this one.
    return np.floor(sums / side**2 + 0.5).astype(pixels.dtype)


def _box_sums(lines: Integer[ndarray, "side n"], size: int) -> Integer[ndarray, "size n"]:
    """Sums over `size` boxes of equal height, in which a line counts `size` times its part in the box."""
    edges, parts = np.divmod(np.arange(size + 1, dtype=lines.dtype) * len(lines), size)
    inside = np.stack([lines[top:bottom].sum(0, dtype=lines.dtype) for top, bottom in pairwise(edges)])
    sums: ndarray = inside * size
    across = parts[1:-1, None] * lines[edges[1:-1]]  # the part of each line at an edge that is above it
    sums[:-1] += across
    sums[1:] -= across
    return sums
