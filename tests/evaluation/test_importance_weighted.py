"""The importance-weighted bound: against scipy, the authors' code and a model with a closed form; and its memory."""

import math
import weakref
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from golden.arrays import arrays, nchw
from model.conftest import CFG1
from scipy.special import logsumexp
from scipy.stats import norm
from torch import Tensor

from attvae.distributions.gaussian import Gaussian, standard_normal
from attvae.evaluation.importance_weighted import importance_weighted_nll_nats
from attvae.model.official import load_weights
from attvae.model.vae import DeepVAE
from attvae.spec import DataSpec


def test_against_scipy_where_float32_and_plain_sums_would_fail() -> None:
    weights = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0)) * 30 - 20_000
    expected = math.log(1000) - logsumexp(weights.double().numpy(), axis=0)
    found = importance_weighted_nll_nats(iter(weights))
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_no_sample_is_an_error() -> None:
    with pytest.raises(ValueError, match="no importance sample"):
        importance_weighted_nll_nats([])


@pytest.fixture(scope="module")
def published() -> DeepVAE:
    model = DeepVAE(CFG1, DataSpec(height=16, width=16, channels=3, num_bits=8, max_value=255))
    load_weights(model, arrays("cfg1_weights"))
    return model.eval()


def golden_noise(k: int) -> list[Tensor]:
    """Sample-major: two images for sample 0, then two for sample 1 ..."""
    return [nchw(arrays("cfg1_iwae")[f"eps.{i}"])[2 * k : 2 * k + 2] for i in range(4)]


def test_the_authors_bound_with_their_noise(published: DeepVAE) -> None:
    images = nchw(arrays("cfg1_eval")["images"]).to(torch.uint8)
    log_weights = list(published.log_weights(images, map(golden_noise, range(4))))
    expected = arrays("cfg1_iwae")
    np.testing.assert_allclose(torch.stack(log_weights), expected["log_w"], rtol=3e-6)
    np.testing.assert_allclose(importance_weighted_nll_nats(log_weights), -expected["predict_workers1"], rtol=3e-6)


def test_memory_does_not_grow_with_the_samples(published: DeepVAE) -> None:
    """No forward pass is larger than the batch, and of all samples' noise one at a time is alive."""
    images = nchw(arrays("cfg1_eval")["images"]).to(torch.uint8)
    passes: list[int] = []
    hooks = [module.register_forward_hook(lambda _, __, out: passes.append(len(out.z))) for module in published.layers]
    hooks.append(published.encoder.register_forward_hook(lambda _, args, __: passes.append(len(args[0]))))
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def noises() -> Iterator[list[Tensor]]:
        nonlocal most
        for _ in range(20):
            noise = [torch.randn(2, *shape) for shape in published.latent_shapes]
            alive.append(weakref.ref(noise[0]))
            most = max(most, sum(ref() is not None for ref in alive))
            yield noise

    importance_weighted_nll_nats(published.log_weights(images, noises()))
    for hook in hooks:
        hook.remove()
    assert passes == [2] * (1 + 20 * 4), "one encoding, 20 samples of 4 layers, each of both images"
    assert most <= 2


class LinearGaussian:
    """z ~ N(0, 1), x | z ~ N(b z, t^2), with a posterior that is too narrow and off: log p(x) has a closed form."""

    B, T = 1.5, 0.7

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.posterior = Gaussian(0.4 * x, torch.full_like(x, 0.3))

    def log_px(self) -> np.ndarray:
        return norm.logpdf(self.x.numpy(), scale=math.hypot(self.B, self.T)).sum(axis=(1, 2, 3))

    def log_weights(self, samples: int) -> Iterator[Tensor]:
        for _ in range(samples):
            z = self.posterior.sample(torch.randn_like(self.x))
            likelihood = Gaussian(self.B * z, torch.full_like(z, self.T)).log_prob(self.x)
            yield likelihood + standard_normal(z).log_prob(z) - self.posterior.log_prob(z)


def test_it_approaches_the_likelihood_from_below() -> None:
    torch.manual_seed(0)
    model = LinearGaussian(torch.linspace(-2, 2, 4, dtype=torch.double).expand(4000, 1, 1, 4))
    gaps = []
    for samples in (1, 4, 16, 64):
        gap = importance_weighted_nll_nats(model.log_weights(samples)).numpy() + model.log_px()
        gaps.append((gap.mean(), gap.std() / math.sqrt(len(gap))))
    for (looser, looser_error), (tighter, tighter_error) in pairwise(gaps):
        assert looser - tighter > 3 * math.hypot(looser_error, tighter_error)
    assert all(gap > -3 * error for gap, error in gaps), "never better than the truth"
    assert gaps[-1][0] < 0.2 * gaps[0][0]
