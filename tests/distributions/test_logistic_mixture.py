import numpy as np
import pytest
import torch
from golden.arrays import arrays, assert_close, nchw
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attvae.distributions import logistic_mixture as dlm

GOLDEN = arrays("units", "dlm.")


def channels_before_mixtures(array: np.ndarray) -> Tensor:
    """[B, H, W, C, M] -> [B, C, M, H, W]"""
    return torch.from_numpy(array).permute(0, 3, 4, 1, 2)


def test_parameters_golden() -> None:
    mixture = dlm.split(nchw(GOLDEN["params"]), channels=3, num_mixtures=5)
    assert_close(mixture.logits, GOLDEN["logits"])
    assert_close(mixture.log_scales, channels_before_mixtures(GOLDEN["log_scales"]))
    assert_close(mixture.locations(nchw(GOLDEN["x"])), channels_before_mixtures(GOLDEN["locs"]))


def test_log_prob_and_gradient_golden() -> None:
    params = nchw(GOLDEN["params"]).requires_grad_()
    x = nchw(GOLDEN["pixels"]).float() * 2 / 255 - 1
    log_prob = dlm.log_prob(x, dlm.split(params, 3, 5), max_value=255, edges="published")
    assert_close(log_prob.detach(), GOLDEN["log_prob"])
    (gradient,) = torch.autograd.grad(log_prob.sum(), params)
    assert_close(gradient, GOLDEN["grad_params_of_sum_log_prob"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("edges", "channels"), [("published", 3), ("normalised", 1), ("normalised", 4)])
def test_gradient_is_that_of_finite_differences(edges: dlm.Edges, channels: int) -> None:
    generator = torch.Generator().manual_seed(1)
    params = torch.randn(1, dlm.num_parameters(channels, 2), 1, 4, generator=generator, dtype=torch.double)
    params.requires_grad_()
    values = torch.randint(1, 254, (1, channels, 1, 4), generator=generator)
    values[..., 0], values[..., 1], values[..., 2] = 0, 255, 254
    x = values.double() * 2 / 255 - 1
    assert torch.autograd.gradcheck(lambda p: dlm.log_prob(x, dlm.split(p, channels, 2), 255, edges), params)


@pytest.mark.parametrize(("edges", "channels"), [("published", 3), ("normalised", 1), ("normalised", 4)])
@pytest.mark.parametrize("spread", [1.0, 8.0])
def test_gradient_is_that_of_the_channels_one_by_one(edges: dlm.Edges, channels: int, spread: float) -> None:
    """By autograd, through the probabilities of all values of a channel given the earlier ones. A large spread meets
    every branch: outermost values, bins, and densities far from the mean.
    """
    generator = torch.Generator().manual_seed(2)
    params = spread * torch.randn(2, dlm.num_parameters(channels, 3), 3, 3, generator=generator, dtype=torch.double)
    params.requires_grad_()
    values = torch.randint(0, 256, (2, channels, 3, 3), generator=generator)
    values[0, :, 0], values[1, :, 0] = 0, 255
    x = values.double() * 2 / 255 - 1
    mixture = dlm.split(params, channels, 3)
    each = [
        dlm.channel_log_probs(x[:, :c], mixture, 255, edges).gather(1, values[:, c : c + 1]) for c in range(channels)
    ]
    expected = torch.cat(each, dim=1).sum(dim=(1, 2, 3))
    found = dlm.log_prob(x, dlm.split(params, channels, 3), 255, edges)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    weights = torch.randn(2, generator=generator, dtype=torch.double)
    gradients = [torch.autograd.grad((weights * log_p).sum(), params)[0] for log_p in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_sample_golden() -> None:
    unit = arrays("units", "dlm.sample.")
    mixture = dlm.split(nchw(GOLDEN["params"]), 3, 5)
    x = dlm.sample(mixture, nchw(unit["u_mixture"]), nchw(unit["u_logistic"]), max_value=255, edges="published")
    assert_close((x + 1) / 2, unit["output"])


def every_image(channels: int, max_value: int) -> Tensor:
    """All images of one pixel, in [-1, 1]."""
    values = torch.cartesian_prod(*[torch.arange(max_value + 1, dtype=torch.double)] * channels)
    return (values * 2 / max_value - 1).view(-1, channels, 1, 1)


def log_probs_of_every_image(params: Tensor, channels: int, max_value: int) -> Tensor:
    x = every_image(channels, max_value).to(params.dtype)
    mixture = dlm.split(params.expand(len(x), -1, 1, 1), channels, 3)
    return dlm.log_prob(x, mixture, max_value, "normalised")


BITS_AND_CHANNELS = [
    *((bits, 1) for bits in range(1, 9)),
    (16, 1),
    *((bits, 2) for bits in (1, 4, 8)),
    *((bits, 3) for bits in (1, 2, 5)),
    *((bits, 4) for bits in (1, 3)),
]


@pytest.mark.parametrize(("bits", "channels"), BITS_AND_CHANNELS)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32), spread=st.sampled_from([0.1, 1.0, 4.0]))
def test_probabilities_of_all_images_sum_to_one(bits: int, channels: int, seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    params = spread * torch.randn(1, dlm.num_parameters(channels, 3), 1, 1, generator=generator, dtype=torch.double)
    total = log_probs_of_every_image(params, channels, 2**bits - 1).exp().sum()
    torch.testing.assert_close(total, torch.ones_like(total))
    total = log_probs_of_every_image(params.float(), channels, 2**bits - 1).exp().sum()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-4, atol=0)


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("bits", range(1, 9))
def test_a_channel_sums_to_one_given_the_earlier_ones(bits: int, channels: int) -> None:
    """Summed over the last channel, the probability of a pixel is that of its earlier channels: of dark, bright and
    random ones. With the test of one channel this covers images too many to list.
    """
    generator = torch.Generator().manual_seed(10 * bits + channels)
    max_value = 2**bits - 1
    earlier = torch.randint(0, max_value + 1, (6, channels - 1), generator=generator)
    earlier[0], earlier[1] = 0, max_value
    params = torch.randn(1, dlm.num_parameters(channels, 3), 1, 1, generator=generator, dtype=torch.double)
    mixture = dlm.split(params, channels, 3)
    without_last = dlm.LogisticMixture(
        mixture.logits,
        mixture.means[:, :-1],
        mixture.log_scales[:, :-1],
        mixture.coefficients[:, : (channels - 1) * (channels - 2) // 2],
    )
    for pixel in earlier:
        expected = probabilities(pixel[None], without_last, max_value)
        last = torch.arange(max_value + 1)[:, None]
        all_of_the_last = torch.cat([pixel.expand(len(last), -1), last], dim=1)
        torch.testing.assert_close(probabilities(all_of_the_last, mixture, max_value).sum(), expected[0])


def probabilities(pixels: Tensor, mixture: dlm.LogisticMixture, max_value: int) -> Tensor:
    """Those of single pixels [n, channels] under one and the same mixture."""
    x = (pixels.double() * 2 / max_value - 1)[:, :, None, None]
    same = dlm.LogisticMixture(*(part.expand(len(x), *part.shape[1:]) for part in mixture))
    return dlm.log_prob(x, same, max_value, "normalised").exp()


def test_probabilities_sum_to_one_with_17_grey_levels() -> None:
    generator = torch.Generator().manual_seed(0)
    params = torch.randn(1, dlm.num_parameters(1, 3), 1, 1, dtype=torch.double, generator=generator)
    total = log_probs_of_every_image(params, 1, 16).exp().sum()
    torch.testing.assert_close(total, torch.ones_like(total))


def test_published_edges_count_the_brightest_value_twice() -> None:
    """With the mass of 255 taken off 254 again, the published probabilities sum to one."""
    params = 0.5 * torch.randn(1, 50, 1, 1, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    x = torch.full((256, 3, 1, 1), 0.0, dtype=torch.double)
    x[:, 0, 0, 0] = torch.arange(256) * 2 / 255 - 1
    mixture = dlm.split(params.expand(256, -1, 1, 1), 3, 5)
    first_channel = dlm.LogisticMixture(
        mixture.logits, mixture.means[:, :1], mixture.log_scales[:, :1], mixture.coefficients[:, :0]
    )
    p = dlm.log_prob(x[:, :1], first_channel, 255, "published").exp()
    torch.testing.assert_close(p.sum() - p[255], torch.ones_like(p[0]), rtol=1e-4, atol=0)
    assert p[255] > 1e-3


def test_far_off_values_keep_a_finite_log_probability_and_gradient() -> None:
    params = torch.zeros(1, dlm.num_parameters(1, 1), 1, 1)
    params[:, 1], params[:, 2] = 5.0, -9.0  # mean far above, the sharpest scale
    params.requires_grad_()
    x = every_image(1, 255).float()
    log_p = dlm.log_prob(x, dlm.split(params.expand(256, -1, 1, 1), 1, 1), 255, "normalised")
    assert log_p.isfinite().all()
    assert torch.autograd.grad(log_p.sum(), params)[0].isfinite().all()


def test_samples_have_the_probabilities_that_log_prob_says() -> None:
    generator = torch.Generator().manual_seed(0)
    params = torch.randn(1, dlm.num_parameters(2, 3), 1, 1, generator=generator)
    expected = log_probs_of_every_image(params, 2, 3).exp()
    n = 100_000
    mixture = dlm.split(params.expand(n, -1, 1, 1), 2, 3)
    x = dlm.sample(
        mixture,
        torch.rand(n, 3, 1, 1, generator=generator),
        torch.rand(n, 2, 1, 1, generator=generator),
        max_value=3,
        edges="normalised",
    )
    values = ((x + 1) * 3 / 2).round().long().view(n, 2)
    counts = torch.bincount(values[:, 0] * 4 + values[:, 1], minlength=16)
    standard_error = (expected * (1 - expected) / n).sqrt()
    assert ((counts / n - expected).abs() < 4.5 * standard_error).all()


def test_extreme_scales_stay_finite() -> None:
    """A head may say anything: log scales up to float32's limits give finite likelihoods and gradients."""
    head = torch.full((1, dlm.num_parameters(1, 1), 1, 256), 0.0)
    head[:, 2] = torch.linspace(-1e4, 1e4, 256)
    head.requires_grad_()
    x = torch.linspace(-1, 1, 256).view(1, 1, 1, 256)
    log_p = dlm.log_prob(x, dlm.split(head, 1, 1), 255, "normalised")
    log_p.sum().backward()
    assert torch.isfinite(log_p).all()
    assert head.grad is not None
    assert torch.isfinite(head.grad).all()
