"""Images between two images.

In a hierarchy the latents of two images cannot be mixed layer by layer: a lower latent means something only under the
prior that the latents above it give. So what is mixed is the noise: each latent is standardised under its prior,
ε_l = (z_l - μ_l(z_<l)) / σ_l(z_<l), the ε of the two images are mixed, and the priors are run with the mixture. Both
ends come out as they went in.

The latents are the means of the posteriors, not draws from them: noise of two draws is orthogonal, and a mixture that
keeps its length would enlarge what the two images share. The length of ε_l says how far an image is from the typical
one, so the mixture goes along the great circle, angle and length in equal steps: a straight line would pass nearer to
zero, and images halfway would be too typical.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from attvae.evaluation.image_table import draw_table, tile
from attvae.evaluation.in_chunks import InChunks


def spherical(a: Float[Tensor, "b z h w"], b: Float[Tensor, "b z h w"], t: float) -> Float[Tensor, "b z h w"]:
    """From a (t = 0) to b (t = 1), each row by itself; parallel rows are mixed in a straight line."""
    p, q = a.double().flatten(1), b.double().flatten(1)
    length_p, length_q = p.norm(dim=1, keepdim=True), q.norm(dim=1, keepdim=True)
    u, v = p / length_p.clamp_min(1e-12), q / length_q.clamp_min(1e-12)
    angle = (u * v).sum(dim=1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    along = torch.where(sine > 1e-6, (((1 - t) * angle).sin() * u + (t * angle).sin() * v) / sine, (1 - t) * u + t * v)
    return (along * ((1 - t) * length_p + t * length_q)).view_as(a).to(a.dtype)


def interpolated(
    model: InChunks, latents_a: list[Tensor], latents_b: list[Tensor], places: Sequence[float]
) -> list[Float[Tensor, "b c h w"]]:
    """At each place t from 0 (image a) to 1 (image b), the mean images."""
    noise_a, noise_b = model.standardised(latents_a), model.standardised(latents_b)
    nothing: list[Tensor | None] = [None] * len(latents_a)
    mixed = ([spherical(a, b, t) for a, b in zip(noise_a, noise_b, strict=True)] for t in places)
    return [model.mean_image(nothing, noise) for noise in mixed]


def interpolation_picture(
    a: Tensor, b: Tensor, between: Sequence[Float[Tensor, "b c h w"]], places: Sequence[float], white: int
) -> Image.Image:
    """A row for each pair of images, which stand at its ends.

    Args:
        white: the pixel value that is white.
    """
    pairs = zip(a, b, strict=True)
    return draw_table(
        "interpolations",
        ["image a", *(f"t = {t:.2g}" for t in places), "image b"],
        [
            ("", [tile(x, white), *(tile(means[row], white) for means in between), tile(y, white)])
            for row, (x, y) in enumerate(pairs)
        ],
        notes=[
            "t: along the great circle between the standardised latents, all layers at once; means of the likelihood"
        ],
    )
