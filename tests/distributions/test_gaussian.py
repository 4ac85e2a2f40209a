import pytest
import torch
from golden.arrays import arrays, assert_close, nchw

from attvae.distributions.gaussian import Gaussian, bound_log_stddev, bound_mean, bounded, kl, standard_normal


@pytest.mark.parametrize(("low", "high"), [(-5, 5), (-1, 5)])
def test_published_bounds_golden(low: int, high: int) -> None:
    unit = arrays("units", "bound.")
    grid = torch.from_numpy(unit["grid"])
    gaussian = bounded(grid, grid, float(low), float(high), "published")
    assert_close(gaussian.mean, unit[f"{low}_{high}.mu"])
    assert_close(gaussian.stddev, unit[f"{low}_{high}.sigma"], rtol=2e-6, atol=0)


def test_residual_posterior_golden() -> None:
    unit = {name: nchw(array) for name, array in arrays("units", "residual_gaussian.").items()}
    prior_mu, prior_s = unit["prior_params"].chunk(2, dim=1)
    delta_mu, delta_s = unit["delta_params"].chunk(2, dim=1)
    prior = bounded(prior_mu, prior_s, -1.0, 5.0, "published")
    posterior = bounded(prior_mu + delta_mu, prior_s + delta_s, -5.0, 5.0, "published")
    z = posterior.sample(unit["eps"])
    for name, found in {
        "prior_mu": prior.mean,
        "prior_sigma": prior.stddev,
        "posterior_mu": posterior.mean,
        "posterior_sigma": posterior.stddev,
        "z": z,
        "q_logp": posterior.log_prob(z),
        "p_logp": prior.log_prob(z),
        "kl": kl(posterior, prior),
    }.items():
        assert_close(found, unit[name])


@pytest.mark.parametrize(("low", "high"), [(-5.0, 5.0), (-1.0, 5.0), (-7.0, 0.5)])
def test_unit_slope_bounds(low: float, high: float) -> None:
    raw = torch.linspace(-30, 30, 601, dtype=torch.double, requires_grad=True)
    bounds = bound_log_stddev(raw, low, high, "unit_slope")
    (slope,) = torch.autograd.grad(bounds.sum(), raw)
    assert low <= bounds.min() < bounds.max() <= high
    assert (slope[raw.abs() < 3 * min(-low, high)] > 0).all()
    at_zero = torch.zeros(1, dtype=torch.double, requires_grad=True)
    for bound in (bound_log_stddev(at_zero, low, high, "unit_slope"), bound_mean(at_zero, "unit_slope")):
        assert bound.item() == 0
        assert torch.autograd.grad(bound, at_zero)[0].item() == 1


def test_kl_and_density_are_those_of_torch() -> None:
    torch.manual_seed(0)
    shape = (3, 2, 4, 4)
    q = Gaussian(torch.randn(shape), torch.rand(shape) + 0.1)
    p = Gaussian(torch.randn(shape), torch.rand(shape) + 0.1)
    z = torch.randn(shape)
    q_torch, p_torch = torch.distributions.Normal(*q), torch.distributions.Normal(*p)
    torch.testing.assert_close(kl(q, p), torch.distributions.kl_divergence(q_torch, p_torch).sum(dim=(1, 2, 3)))
    torch.testing.assert_close(q.log_prob(z), q_torch.log_prob(z).sum(dim=(1, 2, 3)))
    unit = torch.distributions.Normal(torch.zeros(()), torch.ones(()))
    torch.testing.assert_close(
        kl(q, standard_normal(z)), torch.distributions.kl_divergence(q_torch, unit).sum(dim=(1, 2, 3))
    )


def test_kl_is_the_mean_log_ratio_of_draws() -> None:
    """Within 4 standard errors of a Monte-Carlo estimate."""
    torch.manual_seed(0)
    shape = (8, 2, 3, 3)
    q = Gaussian(torch.randn(shape), torch.rand(shape) + 0.2)
    p = Gaussian(torch.randn(shape), torch.rand(shape) + 0.2)
    draws = [q.sample(torch.randn(shape)) for _ in range(4000)]
    log_ratios = torch.stack([q.log_prob(z) - p.log_prob(z) for z in draws])
    standard_error = log_ratios.std(dim=0) / len(draws) ** 0.5
    assert ((log_ratios.mean(dim=0) - kl(q, p)).abs() < 4 * standard_error).all()
    assert (standard_error < 0.05 * kl(q, p)).all()
