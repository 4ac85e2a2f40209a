"""What the top K layers know: its ends are the model's own bound and its prior."""

import math

import pytest
import torch
from small_model import COLOUR, small_model
from torch import Tensor

from attvae.evaluation.in_chunks import InChunks
from attvae.evaluation.top_layers import TopLayers, counts, means_from_top, top_layers, top_layers_picture


def found() -> tuple[TopLayers, list[Tensor], Tensor, list[Tensor]]:
    model = small_model(COLOUR)
    x = torch.randint(0, 256, (5, *COLOUR.shape), dtype=torch.uint8)
    noise = [torch.randn(5, *shape) for shape in model.latent_shapes]
    of_priors = [torch.randn(5, *shape) for shape in model.latent_shapes]
    chunks = InChunks(model, 2)
    latents, ks = chunks.encode(x, noise), counts(4, 17)
    means = means_from_top(chunks, latents, of_priors, ks)
    figures = top_layers(chunks, x, latents, chunks.kl_nats(x, noise), of_priors, means, ks)
    with torch.no_grad():
        elbo = model(x, noise)
        assert figures.nelbo_nats[-1] == pytest.approx(float(elbo.nelbo_nats.mean()), rel=1e-5)
        drawn = model.nll_given(x, model.completed([None] * 4, of_priors))
        assert figures.nelbo_nats[0] == pytest.approx(float(drawn.mean()), rel=1e-5)
        by_hand = model.nll_given(x, model.completed([*latents[:2], None, None], of_priors)) + elbo.kl_nats[:2].sum(0)
        assert figures.nelbo_nats[2] == pytest.approx(float(by_hand.mean()), rel=1e-5)
    return figures, means, x, latents


def test_figures_are_bounds_of_the_model_itself() -> None:
    figures, means, x, latents = found()
    assert figures.counts == (0, 1, 2, 3, 4)
    for k, (bits, nats) in enumerate(zip(figures.bits_per_dim, figures.nelbo_nats, strict=True)):
        assert bits == pytest.approx(nats / (3 * 8 * 8 * math.log(2)))
        assert figures.squared_error[k] == pytest.approx(float((means[k] - x.float()).square().mean()), rel=1e-5)
    torch.testing.assert_close(means[-1], small_model(COLOUR).mean_image(latents))
    for image in means[0]:
        torch.testing.assert_close(image, means[0][0], msg="without a latent of its own every image is the same")


def test_few_of_many_layers_are_counted_evenly_with_both_ends() -> None:
    assert counts(3, 17) == (0, 1, 2, 3)
    assert counts(64, 17) == tuple(range(0, 65, 4))
    assert counts(30, 4) == (0, 10, 20, 30)


def test_the_picture_has_a_column_for_each_k_that_is_shown() -> None:
    figures, means, x, _ = found()
    all_of_them = top_layers_picture(x, means, figures, figures.counts, 255)
    fewer = top_layers_picture(x, means, figures, (0, 4), 255)
    assert all_of_them.height == fewer.height > 5 * 64
    assert all_of_them.width >= 6 * 64
