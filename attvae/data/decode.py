"""From the bytes of a sample to its pixels."""

import io
from functools import lru_cache
from typing import Any

import numpy as np
from numpy import ndarray

from attvae.data.image_file import read_pixels
from attvae.data.resize import centre_square
from attvae.data.shard import DamagedError
from attvae.spec import DataSpec

Sample = dict[str, Any]


def pixel_type(spec: DataSpec) -> np.dtype:
    """How pixels are stored and delivered."""
    return np.dtype("u1" if spec.num_bits <= 8 else "<u2")


def decode(sample: Sample, spec: DataSpec, *, scale: bool = False) -> Sample:
    """Adds the pixels of a webdataset sample (`.npy`, `.png` or `.jpg`) as `pixels`, uint8 or uint16 [H, W, C].

    Args:
        scale: crop and scale images of another size to the spec's (`centre_square`).

    Raises:
        DamagedError: no image, or one that is damaged or is not what the spec says; names shard and sample.
    """
    try:
        pixels = _pixels(sample, spec.channels)
        if scale:
            pixels = centre_square(pixels, spec.height)
        shape = (spec.height, spec.width, spec.channels)
        if pixels.dtype != pixel_type(spec) or pixels.shape != shape:
            raise ValueError(f"found {pixels.dtype} {pixels.shape}, the manifest says {pixel_type(spec)} {shape}")
        if spec.max_value < np.iinfo(pixels.dtype).max and pixels.max() > spec.max_value:
            raise ValueError(f"found the value {pixels.max()}, the manifest says at most {spec.max_value}")
    except ValueError as error:
        raise DamagedError(f"shard {sample['__url__']}, sample {sample['__key__']}: {error}") from None
    sample["pixels"] = pixels
    return sample


def _pixels(sample: Sample, channels: int) -> ndarray:
    if "npy" in sample:
        return _npy(sample["npy"])
    for extension in ("png", "jpg", "jpeg"):
        if extension in sample:
            return read_pixels(sample[extension], channels)
    raise ValueError("no image: expected a member .npy, .png or .jpg")


def _npy(content: bytes) -> ndarray:
    """The array of a .npy file, without a copy."""
    dtype, shape, start = npy_header(content)
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


def npy_header(content: bytes) -> tuple[np.dtype, tuple[int, ...], int]:
    """(type, shape, length of the header) of the .npy file that begins like this.

    Raises:
        ValueError: it is no .npy file, or one of another kind.
    """
    return _npy_header(content[: 10 + int.from_bytes(content[8:10], "little")])


@lru_cache(maxsize=64)
def _npy_header(header: bytes) -> tuple[np.dtype, tuple[int, ...], int]:
    """Images of equal size have equal headers, so this runs rarely."""
    file = io.BytesIO(header)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f".npy format {version}, expected (1, 0)")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order or dtype.hasobject:
        raise ValueError(f".npy of {dtype}, Fortran order {fortran_order}: expected plain numbers in C order")
    return dtype, shape, len(header)
