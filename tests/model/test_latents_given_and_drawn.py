"""Latents that are partly given and partly drawn from their priors, and images from them."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from test_vae import CASES, COLOUR, DIGITS, MIXTURE, build, pixels
from torch import Tensor

from attvae.distributions import logistic_mixture
from attvae.model.vae import DeepVAE

NAMES = ["small", "no attention", "everything", "OMNIGLOT's kind", "one layer"]


def made(name: str) -> tuple[DeepVAE, Tensor, list[Tensor]]:
    change, spec = CASES[name]
    model = build(change, spec).eval()
    return model, pixels(spec), [torch.randn(4, *shape) for shape in model.latent_shapes]


@pytest.mark.parametrize("name", NAMES)
def test_all_drawn_are_those_of_samples(name: str) -> None:
    model, _, noise = made(name)
    pixel_noise = torch.rand(4, *model.pixel_noise_shape)
    for temperature in (1.0, 0.6):
        latents = model.completed([None] * len(noise), noise, temperature)
        expected = model.sample(4, temperature, noise, pixel_noise)
        assert torch.equal(model.decode(latents, pixel_noise), expected)


@pytest.mark.parametrize("name", NAMES)
def test_given_ones_stay_and_standardised_ones_come_back(name: str) -> None:
    model, x, noise = made(name)
    latents = model.encode(x, noise)
    half = [z if i % 2 else None for i, z in enumerate(latents)]
    for given, z in zip(half, model.completed(half, noise), strict=True):
        assert given is None or torch.equal(given, z)
    again = model.completed([None] * len(noise), model.standardised(latents))
    for z, z_again in zip(latents, again, strict=True):
        torch.testing.assert_close(z_again, z, atol=1e-4, rtol=1e-4)


def test_temperature_0_gives_the_means_of_the_priors() -> None:
    model, x, noise = made("everything")
    latents = model.encode(x, noise)
    top = [latents[0], None, None]
    others = [torch.randn_like(eps) for eps in noise]
    for z, z_other in zip(model.completed(top, noise, 0.0), model.completed(top, others, 0.0), strict=True):
        assert torch.equal(z, z_other)
    deviations = model.standardised(model.completed(top, noise, 0.0))[1:]
    assert all(float(eps.abs().max()) < 1e-4 for eps in deviations)


@pytest.mark.parametrize("name", NAMES)
def test_the_likelihood_given_the_posteriors_latents_is_that_of_the_bound(name: str) -> None:
    model, x, noise = made(name)
    with torch.no_grad():
        expected = model(x, noise).nll_nats
    torch.testing.assert_close(model.nll_given(x, model.encode(x, noise)), expected)


def test_means_are_those_of_many_draws() -> None:
    torch.manual_seed(0)
    for change, spec, tolerance in (({}, DIGITS, 0.08), (MIXTURE, COLOUR, 12.0)):
        model = build(change, spec).eval()
        latents = model.encode(pixels(spec))
        draws = torch.stack([model.decode(latents) for _ in range(60)]).double()
        mean = model.mean_image(latents)
        assert mean.shape == draws.shape[1:]
        assert float((draws.mean(dim=0) - mean).abs().mean()) < tolerance


def test_the_mean_of_a_logistic_mixture_against_scipys_draws() -> None:
    """Three components for three channels, one pixel, all far from the ends of the range."""
    logits = torch.tensor([0.3, -0.5, 0.1])
    means = torch.tensor([[-0.3, 0.1, 0.4], [0.0, 0.2, -0.2], [0.1, -0.1, 0.3]])  # [C, M]
    coefficients = torch.tensor([[0.5, -0.4, 0.2], [0.3, 0.1, -0.2], [-0.5, 0.2, 0.6]])  # [K, M]
    log_scales = torch.full((3, 3), -4.0)
    mixture = logistic_mixture.LogisticMixture(
        logits[None, :, None, None], *(part[None, ..., None, None] for part in (means, log_scales, coefficients))
    )
    found = logistic_mixture.mean(mixture)[0, :, 0, 0]

    rng, n = np.random.default_rng(0), 200_000
    m = rng.choice(3, n, p=torch.softmax(logits, 0).double().numpy() / float(torch.softmax(logits, 0).double().sum()))
    noise = scipy.stats.logistic.rvs(scale=math.exp(-4), size=(3, n), random_state=rng)
    mu, k = means.numpy(), coefficients.numpy()
    x0 = mu[0, m] + noise[0]
    x1 = mu[1, m] + k[0, m] * x0 + noise[1]
    x2 = mu[2, m] + k[1, m] * x0 + k[2, m] * x1 + noise[2]
    expected = np.stack([x0, x1, x2])
    errors = expected.std(axis=1) / math.sqrt(n)
    assert (np.abs(found.numpy() - expected.mean(axis=1)) < 5 * errors).all()


def test_the_mean_of_a_logistic_mixture_stays_in_the_range() -> None:
    far = torch.full((1, 1, 2, 1, 1), 9.0)
    mixture = logistic_mixture.LogisticMixture(
        torch.zeros(1, 2, 1, 1), far, torch.zeros_like(far), torch.zeros(1, 0, 2, 1, 1)
    )
    assert 0.99 < float(logistic_mixture.mean(mixture)) <= 1.0
