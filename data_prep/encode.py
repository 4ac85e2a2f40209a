"""From pixels to the file that holds them in a shard."""

import io

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray
from PIL import Image

from attvae.data.manifest import Format
from attvae.data.resize import centre_square
from attvae.spec import DataSpec

EXTENSION: dict[Format, str] = {"raw": "npy", "png": "png", "jpg": "jpg"}


def check_format(spec: DataSpec, format: Format) -> None:
    """
    Raises:
        ValueError: the format cannot hold such images.
    """
    match format:
        case "jpg" if spec.channels not in (1, 3):
            raise ValueError(f"--format jpg holds 1 or 3 channels, the images have {spec.channels}: choose raw or png")
        case "jpg" if spec.num_bits != 8 or spec.max_value != 255:
            raise ValueError(
                f"--format jpg holds the values 0..255, the images have 0..{spec.max_value}: choose raw or png"
            )
        case "png" if spec.channels not in (1, 3, 4):
            raise ValueError(f"--format png holds 1, 3 or 4 channels, the images have {spec.channels}: choose raw")
        case "png" if spec.num_bits > 8 and spec.channels != 1:
            raise ValueError(
                f"--format png holds {spec.num_bits} bits in 1 channel, the images have {spec.channels}: choose raw"
            )


def encode(pixels_HWC: Shaped[ndarray, "h w c"], spec: DataSpec, format: Format) -> bytes:
    """An image of the spec as a file: `.npy` (version 1.0; uint8, or little-endian uint16 beyond 8 bits), PNG, or JPEG
    (quality 95, no subsampling of colours).

    Args:
        pixels_HWC: uint8 or uint16. Another size than the spec's is scaled to it, from the centre square.

    Raises:
        ValueError: other channels, values or types than the spec's.
    """
    height, width, channels = pixels_HWC.shape
    if channels != spec.channels:
        raise ValueError(f"unequal channel counts: {channels} in this image, {spec.channels} in the others")
    if pixels_HWC.dtype.kind != "u" or pixels_HWC.dtype.itemsize > 2:
        raise ValueError(f"pixels of type {pixels_HWC.dtype}, expected uint8 or uint16")
    if pixels_HWC.max() > spec.max_value:
        raise ValueError(f"the value {pixels_HWC.max()} among the pixels, expected at most {spec.max_value}")
    if (height, width) != (spec.height, spec.width):
        if spec.height != spec.width:
            raise ValueError(f"an image of {height}×{width} pixels, expected {spec.height}×{spec.width}")
        pixels_HWC = centre_square(pixels_HWC, spec.height)
    stored = np.ascontiguousarray(pixels_HWC, np.uint8 if spec.num_bits <= 8 else "<u2")
    file = io.BytesIO()
    match format:
        case "raw":
            np.lib.format.write_array(file, stored, version=(1, 0), allow_pickle=False)
        case "png":
            _picture(stored).save(file, "PNG")
        case "jpg":
            _picture(stored).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def _picture(pixels_HWC: Shaped[ndarray, "h w c"]) -> Image.Image:
    return Image.fromarray(pixels_HWC[:, :, 0] if pixels_HWC.shape[2] == 1 else pixels_HWC)
