from typing import NamedTuple

import numpy as np
import pytest
import torch
from threads_as_ranks import on_ranks
from torch import Tensor

from attvae.evaluation.elbo import ElboFigures, ElboSums
from attvae.spec import DataSpec

SPEC = DataSpec(height=4, width=4, channels=3, num_bits=8, max_value=255)
LAYERS = 3
IMAGES = torch.randn(100, *SPEC.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NOISE = torch.randn(100, LAYERS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Parts(NamedTuple):
    nll_nats: Tensor
    kl_nats: Tensor
    nelbo_nats: Tensor


def quadratic(x: Tensor, noise: Tensor) -> Parts:
    """Some figures of each image and its noise, which are easy to have from numpy too."""
    nll = (x**2).sum(dim=(1, 2, 3))
    kl = torch.stack([(eps * x.mean(dim=(1, 2, 3))) ** 2 for eps in noise.unbind(1)])
    return Parts(nll, kl, nll + kl.sum(dim=0))


def sums_of(size: int, start: int = 0, end: int = 100, padding: int = 0) -> ElboSums:
    sums = ElboSums(LAYERS, SPEC)
    for first in range(start, end, size):
        rows = slice(first, min(first + size, end))
        x = torch.cat([torch.full((padding, *SPEC.shape), 3.0).double(), IMAGES[rows]])
        noise = torch.cat([torch.full((padding, LAYERS), 9.0).double(), NOISE[rows]])
        sums.add(quadratic(x, noise), torch.tensor([0.0] * padding + [1.0] * (rows.stop - first)))
    return sums


def alone(sums: Tensor) -> Tensor:
    return sums


def assert_as_expected(figures: ElboFigures | None) -> None:
    x, eps = IMAGES.numpy(), NOISE.numpy()
    nll = np.square(x).sum(axis=(1, 2, 3)).mean()
    kl = np.square(eps * x.mean(axis=(1, 2, 3))[:, None]).mean(axis=0)
    assert figures is not None
    assert figures.images == 100
    found = [figures.nelbo_nats, figures.nll_nats, *figures.kl_nats_per_layer, figures.bits_per_dim]
    np.testing.assert_allclose(found, [nll + kl.sum(), nll, *kl, (nll + kl.sum()) / (48 * np.log(2))], rtol=1e-12)


@pytest.mark.parametrize("size", [1, 7, 64, 100])  # 7 leaves a last batch of 2, 64 one of 36
def test_every_image_counts_once_whatever_the_batch(size: int) -> None:
    assert_as_expected(sums_of(size).figures(alone))


def test_images_of_weight_zero_count_nowhere() -> None:
    assert_as_expected(sums_of(7, padding=2).figures(alone))


def test_the_sums_are_double_whatever_the_model_gives() -> None:
    """A thousand million nats and many small ones, which float32 would lose within a batch and over batches."""
    sums = ElboSums(1, SPEC)
    for first in (1e9, *[0.25] * 1000):
        nll = torch.tensor([first] + [0.25] * 99)
        sums.add(Parts(nll, torch.zeros(1, 100), nll), torch.ones(100))
    assert sums.figures(alone).nll_nats == pytest.approx((1e9 + 0.25 * 100_099) / 100_100, rel=1e-13)


@pytest.mark.parametrize("share", [31, 0, 100])
def test_ranks_with_unequal_shares_agree_with_one_process(share: int) -> None:
    for found in on_ranks([sums_of(7, 0, share).figures, sums_of(64, share, 100).figures]):
        assert_as_expected(found)


def test_metric_names() -> None:
    figures = ElboFigures(10.0, 7.0, (2.9, 0.1), 0.5, 100)
    assert figures.metrics("train") == {
        "train/nelbo_nats": 10.0,
        "train/nll_nats": 7.0,
        "train/kl_nats": 3.0,
        "train/bits_per_dim": 0.5,
        "train/active_layers": 1,  # of more than 0.1 nats
        "kl/layer_00": 2.9,
        "kl/layer_01": 0.1,
    }
    assert set(figures.metrics("val")) == {
        "val/nelbo_nats",
        "val/nll_nats",
        "val/kl_nats",
        "val/bits_per_dim",
        "val/active_layers",
        "val_kl/layer_00",
        "val_kl/layer_01",
    }
