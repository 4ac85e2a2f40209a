import numpy as np
import pytest

from attvae.data.augment import binarise, flip


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(0)


def test_ones_come_with_probability_value_over_maximum(draw: np.random.Generator) -> None:
    n = 200_000
    for value in range(17):
        ones = binarise(np.full((n, 1, 1), value, np.uint8), 16, draw)
        p = value / 16
        assert ones.dtype == np.uint8
        assert set(np.unique(ones)) <= {0, 1}
        assert abs(ones.mean() - p) <= 4 * np.sqrt(p * (1 - p) / n)  # at 0 and 1: exactly


def test_pixels_are_drawn_independently(draw: np.random.Generator) -> None:
    ones = binarise(np.full((100_000, 2, 1), 5, np.uint8), 10, draw)[:, :, 0]
    assert abs(np.corrcoef(ones.T)[0, 1]) < 4 / np.sqrt(100_000)


@pytest.mark.parametrize(("axes", "kinds"), [("horizontal", 2), ("both", 4)])
def test_each_mirror_image_is_as_likely(axes: str, kinds: int, draw: np.random.Generator) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    mirrored = [pixels, np.flip(pixels, 1), np.flip(pixels, 0), np.flip(pixels, (0, 1))]
    seen = [flip(pixels, axes, draw) for _ in range(4000)]
    counts = [sum(np.array_equal(image, kind) for image in seen) for kind in mirrored]
    assert sum(counts) == 4000
    assert counts[kinds:] == [0] * (4 - kinds)
    assert all(abs(count - 4000 / kinds) < 4 * np.sqrt(4000 / kinds) for count in counts[:kinds])
