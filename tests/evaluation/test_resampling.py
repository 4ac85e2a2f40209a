"""One layer drawn anew: variances against NumPy on a model whose image is known."""

import numpy as np
import torch
from torch import Tensor

from attvae.evaluation.in_chunks import InChunks, Latents
from attvae.evaluation.resampling import resampled, resampling_picture


class Sum:
    """z_l = noise_l where drawn; the image is 10 z_0 + z_1, and z_2 is of no use."""

    def mean_image(self, latents: Latents, noise: list[Tensor], temperature: float) -> Tensor:
        z = [eps if given is None else given for given, eps in zip(latents, noise, strict=True)]
        return 10 * z[0] + z[1]


def test_only_that_layer_varies() -> None:
    torch.manual_seed(0)
    latents = list(torch.randn(3, 5, 3, 4, 4))
    noise = [list(torch.randn(3, 5, 3, 4, 4)) for _ in range(6)]
    model = InChunks(Sum(), 2)  # type: ignore[arg-type]
    layers = [resampled(model, latents, layer, noise) for layer in range(3)]
    for layer, factor in ((0, 10), (1, 1)):
        drawn = np.stack([factor * each[layer].numpy() for each in noise]).astype(np.float64)
        np.testing.assert_allclose(layers[layer].variance, drawn.var(axis=0, ddof=1).mean(axis=1), rtol=1e-4)
    assert float(layers[2].variance.max()) == 0
    torch.testing.assert_close(layers[2].draws[0], 10 * latents[0] + latents[1])
    picture = resampling_picture((10 * latents[0] + latents[1])[0], layers, 3, 0, 255)
    assert picture.height > 3 * 64


def test_a_model_that_ignores_its_latents_is_drawn_all_the_same() -> None:
    latents = [torch.zeros(1, 1, 4, 4)] * 3
    only = resampled(InChunks(Sum(), 1), latents, 2, [latents, latents])  # type: ignore[arg-type]
    assert resampling_picture(torch.zeros(1, 4, 4), [only], 1, 0, 1).width > 0
