"""Active units against numpy, and on posteriors whose variance over the images is known."""

import numpy as np
import pytest
import torch
from threads_as_ranks import on_ranks
from torch import Tensor

from attvae.evaluation.active_units import ACTIVE_VARIANCE, ActiveUnits, LayerUnits

SHAPES = [(2, 3, 3), (4, 2, 2)]
IMAGES = 200
# Standard deviations on either side of 0.1, the root of 0.01, around means far from zero.
MEANS = [
    torch.randn(IMAGES, *shape, generator=torch.Generator().manual_seed(i))
    * torch.linspace(0.05, 0.15, shape[0]).view(-1, 1, 1)
    + 4 * torch.randn(1, *shape, generator=torch.Generator().manual_seed(10 + i)).clamp(-1, 1)
    for i, shape in enumerate(SHAPES)
]


def gathered(size: int, start: int = 0, end: int = IMAGES) -> ActiveUnits:
    units = ActiveUnits(SHAPES)
    for first in range(start, end, size):
        rows = slice(first, min(first + size, end))
        units.add([mean[rows] for mean in MEANS], torch.ones(rows.stop - first))
    return units


def expected() -> tuple[LayerUnits, ...]:
    layers = []
    for mean in MEANS:
        values = mean.flatten(1).double().numpy()
        variance = np.var(values, axis=0, ddof=1)
        fourth = ((values - values.mean(0)) ** 4).mean(0)
        error = np.sqrt((fourth - np.var(values, axis=0) ** 2) / IMAGES)
        undecided = np.abs(variance - ACTIVE_VARIANCE) <= 2 * error
        layers.append(LayerUnits(int((variance > ACTIVE_VARIANCE).sum()), int(undecided.sum()), values.shape[1]))
    return tuple(layers)


def alone(sums: Tensor) -> Tensor:
    return sums


@pytest.mark.parametrize("size", [1, 7, 64, 200])
def test_against_numpy_whatever_the_batch(size: int) -> None:
    assert all(0 < layer.active < layer.units for layer in expected())
    assert any(0 < layer.undecided < layer.units for layer in expected())
    assert gathered(size).figures(alone) == expected()


def test_over_ranks() -> None:
    found = on_ranks(
        [lambda total: gathered(7, 0, 61).figures(total), lambda total: gathered(64, 61, IMAGES).figures(total)]
    )
    assert found == [expected()] * 2


def test_images_of_weight_zero_count_nowhere() -> None:
    units = ActiveUnits(SHAPES)
    for rows in torch.arange(IMAGES).split(7):
        padded = [torch.cat([torch.full((2, *mean.shape[1:]), 9.0), mean[rows]]) for mean in MEANS]
        units.add(padded, torch.tensor([0.0, 0.0] + [1.0] * len(rows)))
    assert units.figures(alone) == expected()


def test_a_single_image_tells_nothing() -> None:
    assert gathered(1, 0, 1).figures(alone) is None


def test_units_whose_variance_is_known() -> None:
    """z ~ N(0, 1), x = b z + t e: the posterior mean b x / (b^2 + t^2) varies by b^2 / (b^2 + t^2) over the images."""
    torch.manual_seed(0)
    b, t, images = torch.tensor([2.0, 0.5, 0.15, 0.05, 0.0]), 1.0, 5000
    x = b * torch.randn(images, 5) + t * torch.randn(images, 5)
    mean = b * x / (b**2 + t**2)
    assert ((b**2 / (b**2 + t**2)) > ACTIVE_VARIANCE).tolist() == [True, True, True, False, False]
    units = ActiveUnits([(5, 1, 1)])
    units.add([mean.view(images, 5, 1, 1)], torch.ones(images))
    assert units.figures(alone) == (LayerUnits(active=3, undecided=0, units=5),)


def test_undecided_are_those_that_another_sample_of_images_may_turn() -> None:
    """Of units whose true variance is the threshold, two standard errors hold about 95 %."""
    torch.manual_seed(0)
    units = ActiveUnits([(2000, 1, 1)])
    units.add([0.1 * torch.randn(1000, 2000, 1, 1)], torch.ones(1000))
    [found] = units.figures(alone) or ()
    assert 0.92 < found.undecided / found.units < 0.98
    assert 0.4 < found.active / found.units < 0.6
