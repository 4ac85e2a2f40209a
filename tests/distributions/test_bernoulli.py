import torch
from golden.arrays import arrays, assert_close, nchw

from attvae.distributions.bernoulli import log_prob, sample


def test_log_prob_golden() -> None:
    unit = arrays("units", "bernoulli.")
    x, logits = nchw(unit["x"])[:, :, 2:-2, 2:-2], nchw(unit["logits"])[:, :, 2:-2, 2:-2]
    assert_close(log_prob(x, logits), unit["log_prob_crop2"])


def test_probabilities_of_all_images_sum_to_one() -> None:
    images = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.double)] * 8).view(256, 2, 2, 2)
    logits = 3 * torch.randn(1, 2, 2, 2, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    total = log_prob(images, logits).exp().sum()
    torch.testing.assert_close(total, torch.ones_like(total))


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([-200.0, 200.0]).view(1, 1, 1, 2)
    torch.testing.assert_close(log_prob(torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), logits), torch.tensor([-400.0]))


def test_sample_is_one_where_the_noise_is_below_the_probability() -> None:
    logits = torch.tensor([0.25, 0.5, 0.75]).logit().view(1, 1, 1, 3)
    for u, expected in ((0.1, [1, 1, 1]), (0.4, [0, 1, 1]), (0.6, [0, 0, 1]), (0.9, [0, 0, 0])):
        drawn = sample(logits, torch.full_like(logits, u))
        assert drawn.flatten().tolist() == expected
        assert drawn.dtype == torch.uint8
