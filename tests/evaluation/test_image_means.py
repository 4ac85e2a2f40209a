"""Means over images and their standard errors against numpy and scipy."""

import numpy as np
import pytest
import torch
from scipy import stats
from threads_as_ranks import SumOverRanks, on_ranks
from torch import Tensor

from attvae.evaluation.image_means import Estimate, ImageMeans

IMAGES, DRAWS = 100, 3
# [draws, figures, images], some of them far from zero, where sums of squares would lose the spread.
FIGURES = torch.randn(DRAWS, 4, IMAGES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
FIGURES = FIGURES * torch.tensor([1.0, 1e-3, 5.0, 1.0])[:, None] + torch.tensor([3.0, 1e6, 0.0, -7.0])[:, None]


def gathered(size: int, start: int = 0, end: int = IMAGES) -> ImageMeans:
    means = ImageMeans()
    for draw in FIGURES:
        for number, part in enumerate(draw[:, start:end].split(size, dim=1)):
            means.add(number, part, torch.ones(part.shape[1]))
    return means


def alone(sums: Tensor) -> Tensor:
    return sums


def assert_as_expected(found: tuple[list[Estimate], int], figures: np.ndarray = FIGURES.mean(0).numpy()) -> None:  # noqa: B008
    estimates, images = found
    assert images == figures.shape[1]
    np.testing.assert_allclose([each.value for each in estimates], figures.mean(1), rtol=1e-12)
    errors = [each.standard_error for each in estimates]
    np.testing.assert_allclose(errors, stats.sem(figures, axis=1, ddof=1), rtol=1e-9)


@pytest.mark.parametrize("size", [1, 7, 64, 100])  # 7 leaves a last batch of 2, 64 one of 36
def test_against_numpy_and_scipy_whatever_the_batch(size: int) -> None:
    assert_as_expected(gathered(size).estimates(alone))


@pytest.mark.parametrize("share", [31, 50, 99])
def test_ranks_with_unequal_shares(share: int) -> None:
    def rank(start: int, end: int, size: int):
        return lambda total: gathered(size, start, end).estimates(total)

    for found in on_ranks([rank(0, share, 7), rank(share, IMAGES, 64)]):
        assert_as_expected(found)


def test_a_rank_whose_images_are_all_damaged() -> None:
    def without(total: SumOverRanks) -> tuple[list[Estimate], int]:
        means = ImageMeans()
        means.add(0, torch.full((4, 5), torch.nan), torch.zeros(5))
        return means.estimates(total)

    for found in on_ranks([lambda total: gathered(64).estimates(total), without]):
        assert_as_expected(found)


def test_images_of_weight_zero_count_nowhere() -> None:
    means = ImageMeans()
    for draw in FIGURES:
        for number, part in enumerate(draw.split(7, dim=1)):
            padding = torch.full((4, 2), torch.inf)
            means.add(number, torch.cat([padding, part], dim=1), torch.tensor([0.0, 0.0] + [1.0] * part.shape[1]))
    assert_as_expected(means.estimates(alone))


def test_an_image_that_one_draw_could_not_read() -> None:
    means, weights = ImageMeans(), torch.ones(DRAWS, IMAGES)
    weights[1, 10] = 0
    for draw, present in zip(FIGURES, weights, strict=True):
        means.add(0, draw, present)
    expected = FIGURES.mean(0).numpy()
    expected[:, 10] = FIGURES[[0, 2], :, 10].mean(0).numpy()
    assert_as_expected(means.estimates(alone), expected)


def test_the_sums_are_double_whatever_the_model_gives() -> None:
    """A thousand million nats and many small ones, which float32 would lose within a batch and over batches."""
    means = ImageMeans()
    for number, first in enumerate((1e9, *[0.25] * 1000)):
        means.add(number, torch.tensor([[first] + [0.25] * 99]), torch.ones(100))
    [estimate], images = means.estimates(alone)
    assert images == 100_100
    assert estimate.value == pytest.approx((1e9 + 0.25 * 100_099) / 100_100, rel=1e-13)


def test_a_single_image_has_no_standard_error() -> None:
    means = ImageMeans()
    means.add(0, torch.tensor([[2.0], [3.0]]), torch.ones(1))
    assert means.estimates(alone) == ([Estimate(2.0, None), Estimate(3.0, None)], 1)


def test_no_image_is_left() -> None:
    means = ImageMeans()
    means.add(0, torch.ones(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="all of them are damaged"):
        means.estimates(alone)


def test_the_standard_error_is_that_of_the_mean() -> None:
    """The share of 95 % intervals that hold the true mean, over a thousand data sets."""
    torch.manual_seed(0)
    held = 0
    for _ in range(1000):
        means = ImageMeans()
        of_image = torch.randn(50)
        for _ in range(4):
            means.add(0, (of_image + 2 * torch.randn(50) + 10)[None], torch.ones(50))
        [estimate], _ = means.estimates(alone)
        assert estimate.standard_error is not None
        held += abs(estimate.value - 10) < stats.t.ppf(0.975, 49) * estimate.standard_error
    assert 0.93 < held / 1000 < 0.97
