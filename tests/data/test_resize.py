"""The box filter against the mean in exact fractions, and against the mean over whole blocks."""

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_image

from attvae.data.resize import centre_square


def mean_over_area(square: np.ndarray, size: int, row: int, column: int) -> Fraction:
    """By the definition, for one channel: each pixel weighted by its overlap with the box."""
    side = len(square)

    def overlaps(box: int) -> list[tuple[int, Fraction]]:
        low, high = Fraction(box * side, size), Fraction((box + 1) * side, size)
        return [(p, min(high, Fraction(p + 1)) - max(low, Fraction(p))) for p in range(floor(low), -floor(-high))]

    total = sum(h * w * int(square[y, x]) for y, h in overlaps(row) for x, w in overlaps(column))
    return Fraction(total) / Fraction(side, size) ** 2


@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 9),
    st.sampled_from([1, 3, 4]),
    st.sampled_from([np.uint8, np.uint16]),
    st.integers(0, 2**32),
)
@settings(max_examples=80, deadline=None)
def test_exact_mean(height: int, width: int, size: int, channels: int, dtype: type, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype=dtype)
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side]
    expected = [
        [
            [floor(mean_over_area(square[:, :, c], size, y, x) + Fraction(1, 2)) for c in range(channels)]
            for x in range(size)
        ]
        for y in range(size)
    ]
    scaled = centre_square(pixels, size)
    assert scaled.dtype == dtype
    assert np.array_equal(scaled, expected)


@pytest.mark.parametrize("factor", [2, 3, 4, 5, 8, 13, 16])
@pytest.mark.parametrize("bits", [8, 16])
def test_whole_factors_give_the_rounded_mean(factor: int, bits: int) -> None:
    photo = load_sample_image("china.jpg")[100 : 100 + 16 * factor, : 16 * factor + 8]
    pixels = photo if bits == 8 else photo.astype(np.uint16) * 257 + np.arange(photo.size).reshape(photo.shape) % 7
    pixels = pixels.astype(np.uint8 if bits == 8 else np.uint16)
    blocks = pixels[:, 4:-4].reshape(16, factor, 16, factor, 3).astype(np.int64)
    sums = blocks.sum((1, 3))
    assert np.array_equal(centre_square(pixels, 16), (2 * sums + factor**2) // (2 * factor**2))


@pytest.mark.parametrize("factor", [2, 3, 4, 16])
def test_rounds_at_the_half(factor: int) -> None:
    """Blocks of every possible sum: the mean is rounded up from one half on, never earlier."""
    sums = np.arange(0, 255 * factor**2 + 1).reshape(-1, 1, 1)
    cells = np.arange(factor**2).reshape(1, factor, factor)
    blocks = (sums // factor**2 + (cells < sums % factor**2)).astype(np.uint8)
    chosen = blocks[:: max(1, len(blocks) // 2500)]
    side = int(len(chosen) ** 0.5)
    grid = chosen[: side * side].reshape(side, side, factor, factor).swapaxes(1, 2).reshape(side * factor, -1, 1)
    expected = (2 * chosen[: side * side].sum((1, 2), dtype=np.int64) + factor**2) // (2 * factor**2)
    assert np.array_equal(centre_square(grid, side).ravel(), expected)


def test_never_far_from_pillows_box_filter() -> None:
    """Where whole pixels fill the boxes, Pillow differs by its second rounding only."""
    photo = load_sample_image("flower.jpg")[:420, :420]
    pillow = np.asarray(Image.fromarray(photo).resize((60, 60), Image.Resampling.BOX)).astype(int)
    assert np.abs(centre_square(photo, 60) - pillow).max() == 1


def test_largest_size() -> None:
    """No sum overflows, whatever the type: white stays white at the size limit of an image file."""
    assert (centre_square(np.full((11_000, 1, 1), 65535, np.uint16), 1) == 65535).all()
    white = np.full((5_000, 5_000, 1), 65535, np.uint16)
    assert (centre_square(white, 7) == 65535).all()
