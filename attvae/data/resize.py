"""Any image to a square of the wanted size: the largest centre square, scaled with a box filter."""

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray
from PIL import Image


def centre_square(pixels: Shaped[ndarray, "h w c"], size: int) -> Shaped[ndarray, "size size c"]:
    """The largest centre square of an image, scaled to size × size with a box filter (the mean over each box's area).

    Args:
        pixels: uint8, of 1, 3 or 4 channels.
    """
    height, width, channels = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    if (height, width) == (size, size):
        return pixels
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    box = (left, top, left + side, top + side)
    scaled = image.resize((size, size), Image.Resampling.BOX, box=box)
    return np.asarray(scaled).reshape(size, size, channels)
