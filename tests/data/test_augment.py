import numpy as np
import pytest

from attvae.data.augment import Augment, binarise, channels_first, crop
from attvae.seeding import Purpose, generator


def augmented(augment: Augment, image: np.ndarray, visits: int) -> np.ndarray:
    """One image [H, W, C] in so many epochs."""
    return augment(np.stack([image] * visits), np.arange(visits), np.full(visits, 7))


def test_ones_come_with_probability_value_over_maximum() -> None:
    n = 200
    for value in range(17):
        pixels = np.full((n, 1, 40, 25), value, np.uint8)
        ones = binarise(pixels, 16, 0, Purpose.BINARISE, np.arange(n), np.zeros(n, int))
        p = value / 16
        assert ones.dtype == np.uint8
        assert set(np.unique(ones)) <= {0, 1}
        assert abs(ones.mean() - p) <= 4 * np.sqrt(p * (1 - p) / ones.size)  # at 0 and 1: exactly


def test_pixels_are_drawn_independently() -> None:
    n = 100_000 // 50
    ones = binarise(np.full((n, 1, 50, 2), 5, np.uint8), 10, 0, Purpose.BINARISE, np.arange(n), np.zeros(n, int))
    assert abs(np.corrcoef(ones.reshape(-1, 2).T)[0, 1]) < 4 / np.sqrt(100_000)


@pytest.mark.parametrize(("axes", "kinds"), [("horizontal", 2), ("both", 4)])
def test_each_mirror_image_is_as_likely(axes: str, kinds: int) -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    mirrored = [image, np.flip(image, 1), np.flip(image, 0), np.flip(image, (0, 1))]
    seen = augmented(Augment(axes, 0, seed=0), image, 4000)
    counts = [int((seen == kind.transpose(2, 0, 1)).all((1, 2, 3)).sum()) for kind in mirrored]
    assert sum(counts) == 4000
    assert counts[kinds:] == [0] * (4 - kinds)
    assert all(abs(count - 4000 / kinds) < 4 * np.sqrt(4000 / kinds) for count in counts[:kinds])


def test_flips_are_those_of_numpys_generator() -> None:
    """Pinned to another implementation of the same stream: a change would break the exact resume of runs that exist."""
    images = np.random.default_rng(0).integers(0, 256, (50, 5, 4, 3), dtype=np.uint8)
    epochs, ids = np.arange(50) // 7, np.arange(50) * 2**33
    found = Augment("both", 0, seed=3)(images, epochs, ids)
    for image, epoch, sample_id, result in zip(images, epochs.tolist(), ids.tolist(), found, strict=True):
        left_right, up_down = generator(3, Purpose.AUGMENT, epoch, sample_id).random(2) < 0.5
        axes = [axis for axis, flipped in ((1, left_right), (0, up_down)) if flipped]
        assert np.array_equal(result, np.flip(image, axes).transpose(2, 0, 1))


def test_crops_are_windows_of_the_mirrored_image_each_as_likely() -> None:
    """9 places for a padding of 1, in 9,000 visits: chi-square with 8 degrees of freedom."""
    image = np.arange(4 * 5, dtype=np.uint8).reshape(4, 5, 1)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="reflect")
    windows = [padded[top : top + 4, left : left + 5, 0] for top in range(3) for left in range(3)]
    seen = augmented(Augment("none", 1, seed=0), image, 9000)[:, 0]
    counts = np.array([(seen == window).all((1, 2)).sum() for window in windows])
    assert counts.sum() == 9000
    assert ((counts - 1000) ** 2 / 1000).sum() < 26.1  # the 99.9 % quantile


def test_crop_and_flip_are_drawn_apart() -> None:
    image = np.arange(25, dtype=np.uint8).reshape(5, 5, 1)
    seen = augmented(Augment("horizontal", 1, seed=0), image, 3000)
    assert len({x.tobytes() for x in seen}) == 18


def test_extreme_draws_stay_inside() -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 1)
    draws = np.array([[0, 2**64 - 1], [2**64 - 1, 0]], np.uint64)
    padded = np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    found = crop(pixels, 2, draws)
    assert np.array_equal(found[0], padded[0, 0:3, 4:7])
    assert np.array_equal(found[1], padded[1, 4:7, 0:3])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_channels_come_first(dtype: type) -> None:
    pixels = np.arange(2 * 3 * 4 * 5, dtype=dtype).reshape(2, 3, 4, 5)
    for x in (channels_first(pixels), Augment("none", 0, 0)(pixels, np.zeros(2, int), np.arange(2))):
        assert x.flags.c_contiguous
        assert np.array_equal(x, np.moveaxis(pixels, 3, 1))


def test_binary_images_are_drawn_in_the_order_of_the_stored_ones_and_contiguous() -> None:
    """The stored order is height, width, channels."""
    pixels = np.random.default_rng(0).integers(0, 17, (3, 2, 4, 5), np.uint8)
    epochs, ids = np.array([0, 2, 2**40]), np.array([9, 0, 5])
    ones = binarise(pixels, 16, 7, Purpose.BINARISE, epochs, ids)
    assert ones.flags.c_contiguous
    assert ones.dtype == np.uint8
    for image, row, epoch, sample_id in zip(pixels, ones, epochs.tolist(), ids.tolist(), strict=True):
        draw = generator(7, Purpose.BINARISE, epoch, sample_id).random((4, 5, 2)).transpose(2, 0, 1)
        assert np.array_equal(row, draw < image / 16)
