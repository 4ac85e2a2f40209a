"""From the bytes of a sample to its pixels."""

import io
from functools import lru_cache
from typing import Any

import numpy as np
from numpy import ndarray
from PIL import Image

from attvae.spec import DataSpec

Sample = dict[str, Any]


def decode(sample: Sample, spec: DataSpec) -> Sample:
    """Adds the pixels of a webdataset sample (`.npy`, `.png` or `.jpg`) as `pixels`, uint8 [H, W, C].

    Raises:
        ValueError: no image, or one that is damaged or is not what the spec says; names shard and sample.
    """
    try:
        pixels = _pixels(sample)
        shape = (spec.height, spec.width, spec.channels)
        if pixels.dtype != np.uint8 or pixels.shape != shape:
            raise ValueError(f"found {pixels.dtype} {pixels.shape}, the manifest says uint8 {shape}")
        if spec.max_value < 255 and pixels.max() > spec.max_value:
            raise ValueError(f"found the value {pixels.max()}, the manifest says at most {spec.max_value}")
    except (ValueError, OSError, SyntaxError) as error:  # the last is Pillow's word for a broken PNG
        raise ValueError(f"shard {sample['__url__']}, sample {sample['__key__']}: {error}") from None
    sample["pixels"] = pixels
    return sample


def _pixels(sample: Sample) -> ndarray:
    if "npy" in sample:
        return _npy(sample["npy"])
    for extension in ("png", "jpg", "jpeg"):
        if extension in sample:
            image = Image.open(io.BytesIO(sample[extension]))
            return np.asarray(image).reshape(image.height, image.width, -1)
    raise ValueError("no image: expected a member .npy, .png or .jpg")


def _npy(content: bytes) -> ndarray:
    """The array of a .npy file, without a copy."""
    dtype, shape, start = _npy_header(content[: 10 + int.from_bytes(content[8:10], "little")])
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


@lru_cache(maxsize=64)
def _npy_header(header: bytes) -> tuple[np.dtype, tuple[int, ...], int]:
    """(dtype, shape, length of the header). Images of equal size have equal headers, so this runs rarely."""
    file = io.BytesIO(header)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f".npy format {version}, expected (1, 0)")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order or dtype.hasobject:
        raise ValueError(f".npy of {dtype}, Fortran order {fortran_order}: expected plain numbers in C order")
    return dtype, shape, len(header)
