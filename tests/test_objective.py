import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from attvae.objective import bits_per_dim, importance_weighted_nll_nats, nelbo_nats, training_loss


@pytest.mark.parametrize("num_bits", [1, 5, 8])
def test_a_uniform_distribution_costs_its_bit_depth(num_bits: int) -> None:
    dimensions = 32 * 32 * 3
    nats = dimensions * math.log(2**num_bits)
    assert bits_per_dim(nats, dimensions) == pytest.approx(num_bits, rel=1e-14)


def test_nelbo_sums_the_layers() -> None:
    nll, kl = np.array([1.0, 20.0]), np.array([[0.5, 3.0], [0.25, 0.0], [0.0, 7.0]])
    np.testing.assert_array_equal(nelbo_nats(torch.tensor(nll), torch.tensor(kl)), [1.75, 30.0])


def test_training_loss_and_its_gradient() -> None:
    nll = torch.tensor([1.0, 20.0], dtype=torch.float64, requires_grad=True)
    kl = torch.tensor([[0.5, 3.0], [0.25, 0.0], [0.0, 7.0]], dtype=torch.float64, requires_grad=True)
    loss = training_loss(nll, kl, beta=0.3)
    assert loss.item() == pytest.approx((21.0 + 0.3 * 10.75) / 2, rel=1e-14)
    loss.backward()
    np.testing.assert_allclose(nll.grad, np.full(2, 1 / 2), rtol=1e-14)
    np.testing.assert_allclose(kl.grad, np.full((3, 2), 0.3 / 2), rtol=1e-14)


def test_with_full_kl_weight_the_loss_is_the_mean_nelbo() -> None:
    generator = torch.Generator().manual_seed(0)
    nll = torch.rand(5, generator=generator, dtype=torch.float64)
    kl = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    assert training_loss(nll, kl, 1.0).item() == pytest.approx(nelbo_nats(nll, kl).mean().item(), rel=1e-14)


def test_importance_weighted_bound_against_numpy() -> None:
    """Log weights of real images: thousands of nats, where exp alone gives zero."""
    log_weights = np.random.default_rng(0).normal(-5000, 10, (50, 7))
    expected = -(np.logaddexp.reduce(log_weights, axis=0) - np.log(50))
    np.testing.assert_allclose(importance_weighted_nll_nats(torch.tensor(log_weights)), expected, rtol=1e-14)


def test_one_sample_gives_the_nelbo() -> None:
    rng = np.random.default_rng(1)
    nll, kl = torch.tensor(rng.normal(80, 5, 4)), torch.tensor(rng.normal(3, 1, (2, 4)))
    log_weights = -(nll + kl[0] + kl[1])[None]
    np.testing.assert_allclose(importance_weighted_nll_nats(log_weights), nelbo_nats(nll, kl), rtol=1e-14)


def test_the_exact_posterior_gives_the_likelihood_and_another_a_bound() -> None:
    """z ~ N(0, 1), x | z ~ N(z, 1): then x ~ N(0, 2) and z | x ~ N(x/2, 1/2)."""
    x, draws = 1.5, np.random.default_rng(2).standard_normal((200, 30))

    def bound(mean: float, scale: float) -> torch.Tensor:
        z = mean + scale * draws
        log_weights = norm.logpdf(z) + norm.logpdf(x, loc=z) - norm.logpdf(z, mean, scale)
        return importance_weighted_nll_nats(torch.tensor(log_weights))

    nll = -norm.logpdf(x, scale=math.sqrt(2))
    np.testing.assert_allclose(bound(x / 2, math.sqrt(0.5)), np.full(30, nll), rtol=1e-12)
    assert bound(0, 0.5).mean() > nll


KL = torch.tensor([[0.2, 0.6], [3.0, 5.0], [0.0, 7.6]], dtype=torch.float64)  # means 0.4, 4.0, 3.8


def test_free_bits_charge_no_layer_less_than_the_threshold() -> None:
    nll, kl = torch.tensor([10.0, 30.0], dtype=torch.float64), KL.clone().requires_grad_()
    loss = training_loss(nll, kl, beta=0.5, free_bits_nats=3.9)
    assert loss.item() == pytest.approx(20 + 0.5 * (3.9 + 4.0 + 3.9), rel=1e-14)
    loss.backward()
    np.testing.assert_allclose(kl.grad, [[0, 0], [0.25, 0.25], [0, 0]], rtol=1e-14)
    assert training_loss(nll, KL, 1.0, free_bits_nats=1e-9) == training_loss(nll, KL, 1.0)


def test_balancing_weighs_layers_by_their_share_of_the_kl() -> None:
    """sum_l gamma_l E[KL_l] with gamma_l = 3 E[KL_l] / 8.2 has the gradient gamma_l / B: gamma is a constant."""
    nll, kl = torch.tensor([10.0, 30.0], dtype=torch.float64), KL.clone().requires_grad_()
    loss = training_loss(nll, kl, beta=0.5, balance_kl=True)
    assert loss.item() == pytest.approx(20 + 0.5 * 3 * (0.4**2 + 4.0**2 + 3.8**2) / 8.2, rel=1e-14)
    loss.backward()
    gamma = 3 * np.array([0.4, 4.0, 3.8]) / 8.2
    np.testing.assert_allclose(kl.grad, 0.5 * np.outer(gamma, [0.5, 0.5]), rtol=1e-14)


def test_balancing_divides_by_the_sizes_of_the_layers() -> None:
    """Means 0.4, 4.0, 3.8 by sizes 1, 4, 2 of the smallest are 0.4, 1.0, 1.9, together 3.3."""
    nll = torch.tensor([10.0, 30.0], dtype=torch.float64)
    loss = training_loss(nll, KL, beta=0.5, balance_kl=True, layer_sizes=[16, 64, 32])
    assert loss.item() == pytest.approx(20 + 0.5 * 3 * (0.4 * 0.4 + 1.0 * 4.0 + 1.9 * 3.8) / 3.3, rel=1e-14)
    same = training_loss(nll, KL, beta=0.5, balance_kl=True, layer_sizes=[16, 16, 16])
    assert same == training_loss(nll, KL, beta=0.5, balance_kl=True)


def test_the_bound_itself_is_never_balanced() -> None:
    nll = torch.tensor([10.0, 30.0], dtype=torch.float64)
    assert training_loss(nll, KL, 1.0, balance_kl=True) == nelbo_nats(nll, KL).mean()


def test_balancing_where_no_layer_tells_anything() -> None:
    assert training_loss(torch.ones(2), torch.zeros(3, 2), 0.5, balance_kl=True) == 1


@pytest.mark.parametrize("options", [{}, {"free_bits_nats": 3.9}, {"balance_kl": True}])
def test_an_image_of_weight_zero_leaves_the_loss_of_the_others(options: dict) -> None:
    kl = torch.cat([KL[:, :1], KL + 5, KL[:, 1:]], dim=1)
    nll = torch.tensor([10.0, 99.0, 77.0, 30.0], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, 0, 0, 1], dtype=torch.float64)
    loss = training_loss(nll, kl, 0.5, weights, **options)
    alone = training_loss(nll[[0, 3]], KL, 0.5, **options)
    assert loss.item() == pytest.approx(alone.item(), rel=1e-14)
    loss.backward()
    assert nll.grad is not None
    np.testing.assert_allclose(nll.grad, [0.5, 0, 0, 0.5], rtol=1e-14)


def test_a_batch_in_which_nothing_counts_has_no_loss() -> None:
    assert training_loss(torch.ones(2), torch.ones(3, 2), 0.5, torch.zeros(2)) == 0
