from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp
from threads_as_ranks import on_ranks
from torch import Tensor, nn

from attvae.evaluation.split_figures import DrawnBatch, SplitFigures, evaluate_split
from attvae.spec import DataSpec

SPEC = DataSpec(height=4, width=4, channels=3, num_bits=8, max_value=255)
LAYERS, DRAWS, SAMPLES = 3, 2, 5
SHAPES = [(2, 1, 1)] * LAYERS
IMAGES = torch.randn(100, *SPEC.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
NOISE = torch.randn(DRAWS, SAMPLES, 100, LAYERS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Parts(NamedTuple):
    nll_nats: Tensor
    kl_nats: Tensor
    nelbo_nats: Tensor
    trace: dict[str, Tensor] | None


class Quadratic(nn.Module):
    """Some figures of each image and its noise, which are easy to have from numpy too."""

    def forward(self, x: Tensor, noise: list[Tensor], trace: bool = False) -> Parts:
        assert not self.training
        assert not torch.is_grad_enabled()
        nll = (x**2).sum(dim=(1, 2, 3))
        kl = torch.stack([(eps * x.mean(dim=(1, 2, 3))) ** 2 for eps in noise])
        means = {
            f"layer.{i}.posterior_mu": eps[:, None, None, None] * torch.ones(2, 1, 1) for i, eps in enumerate(noise)
        }
        return Parts(nll, kl, nll + kl.sum(dim=0), means if trace else None)

    def log_weights(self, x: Tensor, noises: Iterable[list[Tensor]]) -> Iterator[Tensor]:
        for noise in noises:
            yield -sum(noise) - (x**2).sum(dim=(1, 2, 3))


def draws(size: int, start: int = 0, end: int = 100) -> Iterator[Iterator[DrawnBatch]]:
    def noise(draw: int, rows: slice) -> Callable[[int], list[Tensor]]:
        return lambda k: list(NOISE[draw, k, rows].unbind(1))

    def batches(draw: int) -> Iterator[DrawnBatch]:
        for first in range(start, end, size):
            rows = slice(first, min(first + size, end))
            yield DrawnBatch(IMAGES[rows], noise(draw, rows), torch.ones(rows.stop - first))

    return (batches(draw) for draw in range(DRAWS))


def evaluate(size: int, iw: int | None = SAMPLES) -> SplitFigures:
    return evaluate_split(
        Quadratic(), draws(size), latent_shapes=SHAPES, spec=SPEC, sum_over_ranks=lambda x: x, importance_samples=iw
    )


def assert_as_expected(found: SplitFigures) -> None:
    x, eps = IMAGES.numpy(), NOISE.numpy()
    nll = np.square(x).sum(axis=(1, 2, 3))
    kl = np.square(eps[:, 0] * x.mean(axis=(1, 2, 3))[:, None]).mean(axis=0)
    iw = (np.log(SAMPLES) - logsumexp(-eps.sum(-1) - nll, axis=1)).mean(axis=0)
    nelbo = nll + kl.sum(axis=1)
    per_nat = 1 / (48 * np.log(2))
    wanted = [nelbo, nll, kl.sum(axis=1), *kl.T, per_nat * nelbo, iw, per_nat * iw]
    estimates = [found.nelbo_nats, found.nll_nats, found.kl_nats, *found.kl_nats_per_layer, found.bits_per_dim]
    estimates += [each for each in (found.iw_nll_nats, found.iw_bits_per_dim) if each]
    np.testing.assert_allclose([each.value for each in estimates], [each.mean() for each in wanted], rtol=1e-12)
    np.testing.assert_allclose([each.standard_error for each in estimates], [stats.sem(e) for e in wanted], rtol=1e-9)
    assert (found.images, found.draws) == (100, DRAWS)
    assert found.active_units is not None
    assert [tuple(layer) for layer in found.active_units] == [(2, 0, 2)] * LAYERS, "means are the noise, of variance 1"


@pytest.mark.parametrize("size", [1, 7, 64, 100])
def test_every_image_counts_once_whatever_the_batch(size: int) -> None:
    assert_as_expected(evaluate(size))


def test_over_ranks() -> None:
    def rank(size: int, start: int, end: int):
        return lambda total: evaluate_split(
            Quadratic(),
            draws(size, start, end),
            latent_shapes=SHAPES,
            spec=SPEC,
            sum_over_ranks=total,
            importance_samples=SAMPLES,
        )

    for found in on_ranks([rank(7, 0, 31), rank(64, 31, 100)]):
        assert_as_expected(found)


def test_without_importance_samples() -> None:
    found = evaluate(64, None)
    assert (found.iw_nll_nats, found.iw_bits_per_dim) == (None, None)
    assert found._replace(iw_nll_nats=evaluate(64).iw_nll_nats, iw_bits_per_dim=evaluate(64).iw_bits_per_dim) == (
        evaluate(64)
    )


def test_the_means_alone() -> None:
    found = evaluate(64)
    elbo = found.elbo()
    assert elbo.nelbo_nats == found.nelbo_nats.value
    assert elbo.kl_nats_per_layer == tuple(kl.value for kl in found.kl_nats_per_layer)
    assert elbo.metrics("val")["val/kl_nats"] == pytest.approx(found.kl_nats.value, rel=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_its_mode(training: bool) -> None:
    model = Quadratic().train(training)
    evaluate_split(model, draws(64), latent_shapes=SHAPES, spec=SPEC, sum_over_ranks=lambda x: x)
    assert model.training is training
