"""What the top K latent layers know of an image: the rest comes from the priors given those.

Layers 0 ... K - 1 are drawn from the posterior q(z_l | z_<l, x), the others from the prior p(z_l | z_<l). That is a
posterior as well, whose KL is zero from layer K on, so that

    NELBO_K = Σ_{l<K} KL_l - log p(x | z),   z_<K ~ q,  z_≥K ~ p

bounds -log p(x) for every K. What layer K adds is NELBO_K - NELBO_{K+1}: positive where it tells more about the pixels
than it costs.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from attvae.evaluation.image_table import draw_table, tile
from attvae.evaluation.in_chunks import InChunks
from attvae.objective import bits_per_dim


class TopLayers(NamedTuple):
    """Means over images, an entry for each K."""

    counts: tuple[int, ...]
    """K: how many layers from the top are inferred, from 0 to L."""
    nelbo_nats: tuple[float, ...]
    bits_per_dim: tuple[float, ...]
    squared_error: tuple[float, ...]
    """Of the mean image with the layers below at their priors' means: per value, in pixel values squared."""

    def as_json(self) -> dict[str, Any]:
        return {
            "inferred_layers": list(self.counts),
            "nelbo_nats": list(self.nelbo_nats),
            "bits_per_dim": list(self.bits_per_dim),
            "squared_error": list(self.squared_error),
        }


def counts(layers: int, most: int) -> tuple[int, ...]:
    """Values of K from 0 to L, at most so many, evenly spread."""
    return tuple(sorted({round(k) for k in torch.linspace(0, layers, min(layers + 1, most)).tolist()}))


def means_from_top(
    model: InChunks, latents: list[Tensor], noise: list[Tensor], ks: Sequence[int]
) -> list[Float[Tensor, "b c h w"]]:
    """For each K, the mean images with layers K and below at the means of their priors."""
    return [model.mean_image(_top(latents, k), noise, 0.0) for k in ks]


def top_layers(
    model: InChunks,
    x: Tensor,
    latents: list[Tensor],
    kl_nats: Float[Tensor, "l b"],
    noise: list[Tensor],
    means: Sequence[Float[Tensor, "b c h w"]],
    ks: Sequence[int],
) -> TopLayers:
    """The figures of images x whose posteriors gave `latents` and `kl_nats`.

    Args:
        noise: for what comes from the priors.
        means: as `means_from_top` gives them.
    """
    nelbo, errors = [], []
    for k, mean in zip(ks, means, strict=True):
        nll_nats = model.nll_given(x, _top(latents, k), noise)
        nelbo.append(float((kl_nats[:k].double().sum(dim=0) + nll_nats.double()).mean()))
        errors.append(float((mean.double() - x.double()).square().mean()))
    bits = tuple(bits_per_dim(nats, x[0].numel()) for nats in nelbo)
    return TopLayers(tuple(ks), tuple(nelbo), bits, tuple(errors))


def top_layers_picture(
    x: Tensor, means: Sequence[Float[Tensor, "b c h w"]], figures: TopLayers, shown: Collection[int], white: int
) -> Image.Image:
    """A row for each image, a column for each K that is shown, and under them the figures of all images.

    Args:
        white: the pixel value that is white.
    """
    drawn = [i for i, k in enumerate(figures.counts) if k in shown]
    unit = "probabilities" if white == 1 else f"pixel values of 0 to {white}"
    tiles = [("", [tile(image, white), *(tile(means[i][row], white) for i in drawn)]) for row, image in enumerate(x)]
    return draw_table(
        "reconstructions from the top K layers",
        ["image", *(f"K = {figures.counts[i]}" for i in drawn)],
        [
            *tiles,
            ("bits/dim", ["", *(f"{figures.bits_per_dim[i]:.3f}" for i in drawn)]),
            ("RMS error", ["", *(f"{figures.squared_error[i] ** 0.5:.3g}" for i in drawn)]),
        ],
        notes=[
            "layers K and below are at their priors' means; for the bits/dim they are drawn from them",
            f"RMS error: root mean square over all values, in {unit}",
        ],
    )


def _top(latents: list[Tensor], k: int) -> list[Tensor | None]:
    return [z if i < k else None for i, z in enumerate(latents)]
