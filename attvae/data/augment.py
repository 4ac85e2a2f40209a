"""What is drawn at random for the images of a batch: each image's draw belongs to its sample and the visit."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped, UInt8, UInt64
from numpy import ndarray
from numpy.lib.stride_tricks import sliding_window_view

from attvae.data.config import Flip
from attvae.seeding import Purpose, generators, words
from attvae.spec import DataSpec


class Augment(NamedTuple):
    """The augmentation of training images, as the configuration says."""

    flip: Flip
    crop_pad: int
    seed: int

    def __call__(
        self, pixels: Shaped[ndarray, "b h w c"], epochs: Int64[ndarray, "b"], ids: Int64[ndarray, "b"]
    ) -> Shaped[ndarray, "b c h w"]:
        """Augmented images, channels first, contiguous."""
        if self.flip == "none" and not self.crop_pad:
            return channels_first(pixels)
        draws = words(self.seed, Purpose.AUGMENT, epochs, ids)
        if self.crop_pad:
            pixels = crop(pixels, self.crop_pad, draws[:, 2:])
        return channels_first(pixels) if self.flip == "none" else flip(pixels, self.flip, draws[:, :2])


def channels_first(pixels: Shaped[ndarray, "b h w c"]) -> Shaped[ndarray, "b c h w"]:
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def for_evaluation(
    pixels: Shaped[ndarray, "b h w c"], spec: DataSpec, seed: int, ids: Int64[ndarray, "b"], draw: int
) -> Shaped[ndarray, "b c h w"]:
    """Unchanged images, or the binarisation that belongs to (sample id, draw); channels first, contiguous."""
    x = channels_first(pixels)
    if not spec.binary:
        return x
    return binarise(x, spec.max_value, seed, Purpose.EVALUATE_BINARISE, ids, np.full_like(ids, draw))


def flip(pixels: Shaped[ndarray, "b h w c"], axes: Flip, draws: UInt64[ndarray, "b 2"]) -> Shaped[ndarray, "b c h w"]:
    """Mirrors left-right, and for `both` also up-down, each with probability 1/2; channels first."""
    batch, height, width, channels = pixels.shape
    flipped = np.empty((batch, channels, height, width), pixels.dtype)
    left_right, up_down = (draws < 2**63).T
    for columns in (slice(None), slice(None, None, -1)):
        for rows in (slice(None), slice(None, None, -1)):
            here = left_right == (columns.step == -1)
            if axes == "both":
                here = here & (up_down == (rows.step == -1))
            elif rows.step == -1:
                continue
            flipped[here] = pixels[here][:, rows, columns].transpose(0, 3, 1, 2)
    return flipped


def crop(pixels: Shaped[ndarray, "b h w c"], pad: int, draws: UInt64[ndarray, "b 2"]) -> Shaped[ndarray, "b h w c"]:
    """Mirrors `pad` pixels over every edge, then cuts the original size out at a uniformly drawn place."""
    batch, height, width, _ = pixels.shape
    padded = np.pad(pixels, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    # The upper 32 bits of a draw, as a fraction of 2^32, scaled to the places.
    top, left = ((draws >> np.uint64(32)) * np.uint64(2 * pad + 1) >> np.uint64(32)).astype(np.int64).T
    places = sliding_window_view(padded, (height, width), axis=(1, 2))  # [B, places, places, C, H, W]
    return places[np.arange(batch), top, left].transpose(0, 2, 3, 1)


def binarise(
    pixels: UInt8[ndarray, "b c h w"],
    max_value: int,
    seed: int,
    purpose: Purpose,
    majors: Int64[ndarray, "b"],
    minors: Int64[ndarray, "b"],
) -> UInt8[ndarray, "b c h w"]:
    """Ones with probability pixels / max_value: exact for 0 and max_value, since a draw lies in [0, 1)."""
    batch, channels, height, width = pixels.shape
    draws = np.empty((batch, height, width, channels))
    places = zip(majors.tolist(), minors.tolist(), strict=True)
    for row, at in zip(draws, generators(seed, purpose, places), strict=True):
        at.random(out=row)
    return (draws.transpose(0, 3, 1, 2) * max_value < pixels).astype(np.uint8, order="C")
