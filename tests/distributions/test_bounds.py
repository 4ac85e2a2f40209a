"""The bounds on a linear-Gaussian model of two latent layers, whose likelihood has a closed form.

z_0 ~ N(0, 1), z_1 | z_0 ~ N(a z_0, s^2), x | z_1 ~ N(b z_1, t^2), each coordinate for itself.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from attvae.distributions.gaussian import Gaussian, kl, standard_normal
from attvae.objective import importance_weighted_nll_nats, nelbo_nats

A, S, B, T = 0.8, 0.6, 1.5, 0.7
DIMENSIONS, ROWS = 6, 8_000
X = torch.linspace(-2, 2, DIMENSIONS, dtype=torch.double).view(1, 1, 1, -1)
EXACT = float(norm.logpdf(X.numpy(), scale=math.sqrt(B**2 * (A**2 + S**2) + T**2)).sum())

Posterior = Callable[[Tensor], Gaussian]


def too_simple(x: Tensor) -> tuple[Gaussian, Posterior]:
    """q(z_0 | x) and q(z_1 | z_0, x): of the right kind, wrong in mean and spread."""
    spread = torch.full_like(x, 0.7)
    return Gaussian(0.2 * x, spread), lambda z_0: Gaussian(0.3 * x + 0.4 * z_0, 0.8 * spread)


def exact(x: Tensor) -> tuple[Gaussian, Posterior]:
    """By Gaussian conditioning, first on x, then on x and z_0."""
    marginal = B**2 * (A**2 + S**2) + T**2
    q_0 = Gaussian(A * B / marginal * x, torch.full_like(x, math.sqrt(1 - (A * B) ** 2 / marginal)))
    precision = 1 / S**2 + (B / T) ** 2
    stddev = torch.full_like(x, precision**-0.5)
    return q_0, lambda z_0: Gaussian((A / S**2 * z_0 + B / T**2 * x) / precision, stddev)


def draw(rows: int, posterior: Callable[[Tensor], tuple[Gaussian, Posterior]]) -> tuple[Tensor, Tensor]:
    """ELBO with its KL in closed form, and log p(x, z) - log q(z | x), for each row."""
    x = X.expand(rows, -1, -1, -1)
    q_0, q_1_given = posterior(x)
    z_0 = q_0.sample(torch.randn_like(x))
    p_0, p_1, q_1 = standard_normal(x), Gaussian(A * z_0, torch.full_like(x, S)), q_1_given(z_0)
    z_1 = q_1.sample(torch.randn_like(x))
    log_px = Gaussian(B * z_1, torch.full_like(x, T)).log_prob(x)
    elbo = -nelbo_nats(-log_px, torch.stack([kl(q_0, p_0), kl(q_1, p_1)]))
    log_ratios = [p.log_prob(z) - q.log_prob(z) for z, p, q in ((z_0, p_0, q_0), (z_1, p_1, q_1))]
    return elbo, log_px + sum(log_ratios)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return values.mean().item(), values.std().item() / len(values) ** 0.5


def test_elbo_below_importance_weighted_bounds_below_the_likelihood() -> None:
    torch.manual_seed(0)
    elbo, elbo_error = mean_and_error(draw(ROWS, too_simple)[0])
    bounds = []
    for k in (1, 2, 8, 32, 128):
        _, log_weights = draw(ROWS * k if k < 32 else 64_000, too_simple)
        bounds.append(mean_and_error(-importance_weighted_nll_nats(log_weights.view(k, -1))))
    one, one_error = bounds[0]
    assert abs(elbo - one) < 3 * math.hypot(elbo_error, one_error)
    for (lower, lower_error), (higher, higher_error) in pairwise(bounds):
        assert higher - lower > 3 * math.hypot(lower_error, higher_error), "rises with k, and by more than noise"
    for bound, error in bounds:
        assert bound < EXACT + 3 * error
    assert EXACT - bounds[-1][0] < 0.1 < EXACT - elbo


def test_with_the_exact_posterior_every_draw_gives_the_likelihood() -> None:
    torch.manual_seed(0)
    _, log_weights = draw(64, exact)
    assert log_weights.tolist() == pytest.approx([EXACT] * 64, rel=1e-12)
    elbo, error = mean_and_error(draw(ROWS, exact)[0])
    assert elbo == pytest.approx(EXACT, abs=3 * error)
