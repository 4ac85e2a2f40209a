from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attvae.evaluation.elbo import ElboFigures, ElboSums, evaluate_elbo
from attvae.spec import DataSpec

SPEC = DataSpec(height=4, width=4, channels=3, num_bits=8, max_value=255)
LAYERS = 3
IMAGES = torch.randn(100, *SPEC.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NOISE = torch.randn(100, LAYERS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Parts(NamedTuple):
    nll_nats: Tensor
    kl_nats: Tensor
    nelbo_nats: Tensor


class Quadratic(nn.Module):
    """Some figures of each image and its noise, which are easy to have from numpy too."""

    def forward(self, x: Tensor, noise: list[Tensor]) -> Parts:
        assert not self.training
        assert not torch.is_grad_enabled()
        nll = (x**2).sum(dim=(1, 2, 3))
        kl = torch.stack([(eps * x.mean(dim=(1, 2, 3))) ** 2 for eps in noise])
        return Parts(nll, kl, nll + kl.sum(dim=0))


def batches(size: int, start: int = 0, end: int = 100) -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
    for first in range(start, end, size):
        rows = slice(first, min(first + size, end))
        yield IMAGES[rows], list(NOISE[rows].unbind(1)), torch.ones(rows.stop - first)


def alone(sums: Tensor) -> Tensor:
    return sums


def evaluate(size: int) -> ElboFigures:
    return evaluate_elbo(Quadratic(), batches(size), layers=LAYERS, spec=SPEC, sum_over_ranks=alone)


def numbers(figures: ElboFigures) -> list[float]:
    return [figures.nelbo_nats, figures.nll_nats, *figures.kl_nats_per_layer, figures.bits_per_dim]


def expected() -> list[float]:
    x, eps = IMAGES.numpy(), NOISE.numpy()
    nll = np.square(x).sum(axis=(1, 2, 3)).mean()
    kl = np.square(eps * x.mean(axis=(1, 2, 3))[:, None]).mean(axis=0)
    return [nll + kl.sum(), nll, *kl, (nll + kl.sum()) / (48 * np.log(2))]


@pytest.mark.parametrize("size", [1, 7, 64, 100])  # 7 leaves a last batch of 2, 64 one of 36
def test_every_image_counts_once_whatever_the_batch(size: int) -> None:
    figures = evaluate(size)
    assert figures.images == 100
    np.testing.assert_allclose(numbers(figures), expected(), rtol=1e-12)


def test_batch_size_does_not_matter() -> None:
    np.testing.assert_allclose(numbers(evaluate(7)), numbers(evaluate(64)), rtol=1e-10)


def test_images_of_weight_zero_count_nowhere() -> None:
    def padded() -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
        for x, noise, weights in batches(7):
            yield (
                torch.cat([torch.full((2, *SPEC.shape), 3.0).double(), x]),
                [torch.cat([torch.full((2,), 9.0).double(), eps]) for eps in noise],
                torch.cat([torch.zeros(2), weights]),
            )

    figures = evaluate_elbo(Quadratic(), padded(), layers=LAYERS, spec=SPEC, sum_over_ranks=alone)
    assert figures.images == 100
    np.testing.assert_allclose(numbers(figures), expected(), rtol=1e-12)


def test_the_sums_are_double_whatever_the_model_gives() -> None:
    """A thousand million nats and many small ones, which float32 would lose within a batch and over batches."""
    sums = ElboSums(1, SPEC)
    for first in (1e9, *[0.25] * 1000):
        nll = torch.tensor([first] + [0.25] * 99)
        sums.add(Parts(nll, torch.zeros(1, 100), nll), torch.ones(100))
    assert sums.figures(alone).nll_nats == pytest.approx((1e9 + 0.25 * 100_099) / 100_100, rel=1e-13)


@pytest.mark.parametrize("share", [31, 0, 100])
def test_ranks_with_unequal_shares_agree_with_one_process(share: int) -> None:
    shares: list[Tensor] = []

    def gather(own: Tensor) -> Tensor:
        shares.append(own)
        return torch.ones_like(own)  # what this rank would report is not looked at

    evaluate_elbo(Quadratic(), batches(7, share, 100), layers=LAYERS, spec=SPEC, sum_over_ranks=gather)
    figures = evaluate_elbo(
        Quadratic(), batches(7, 0, share), layers=LAYERS, spec=SPEC, sum_over_ranks=lambda own: own + shares[0]
    )
    assert figures.images == 100
    np.testing.assert_allclose(numbers(figures), expected(), rtol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_its_mode(training: bool) -> None:
    model = Quadratic().train(training)
    evaluate_elbo(model, batches(64), layers=LAYERS, spec=SPEC, sum_over_ranks=alone)
    assert model.training is training


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
