"""What one latent layer decides: it alone is drawn anew from its prior, the latents of all others stay as they are."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from attvae.evaluation.image_table import Cell, Scale, draw_table, heat, tile
from attvae.evaluation.in_chunks import InChunks

_DRAWS_SHOWN = 5


class Resampled(NamedTuple):
    """Of one layer and all images: pixel values; each value's variance over the draws, the mean over the channels."""

    layer: int
    draws: list[Float[Tensor, "b c h w"]]
    variance: Float[Tensor, "b h w"]


def resampled(model: InChunks, latents: list[Tensor], layer: int, noise: Sequence[list[Tensor]]) -> Resampled:
    """Means of the likelihood, a draw for each entry of `noise`: z_layer ~ p(z_layer | z_above)."""
    kept: list[Tensor | None] = [None if i == layer else z for i, z in enumerate(latents)]
    draws = [model.mean_image(kept, each) for each in noise]
    return Resampled(layer, draws, torch.stack(draws).double().var(dim=0).mean(dim=1))


def resampling_picture(
    reconstruction: Tensor, layers: Sequence[Resampled], of: int, row: int, white: int
) -> Image.Image:
    """A row for each layer: image `row` with that layer drawn anew, and the standard deviation over the draws.

    Args:
        reconstruction: [C, H, W] of that image.
        of: how many layers the model has.
        white: the pixel value that is white.
    """
    deviations = [each.variance[row].sqrt() for each in layers]
    largest = max(float(each.max()) for each in deviations)
    unit = "probability" if white == 1 else f"pixel values of 0 to {white}"
    rows: list[tuple[str, list[Cell]]] = []
    for each, deviation in zip(layers, deviations, strict=True):
        draws = [tile(draw[row], white) for draw in each.draws[:_DRAWS_SHOWN]]
        share = deviation / largest if largest > 0 else deviation
        rows.append(
            (
                f"layer {each.layer}",
                [tile(reconstruction, white), *draws, heat(share), f"{float(each.variance[row].mean()) ** 0.5:.3g}"],
            )
        )
    return draw_table(
        "one layer drawn anew, the others kept",
        ["mean", *(f"draw {i + 1}" for i in range(min(_DRAWS_SHOWN, len(layers[0].draws)))), "deviation", "RMS"],
        rows,
        scale=Scale("0", f"{largest:.3g}", f"standard deviation over {len(layers[0].draws)} draws, {unit}"),
        notes=[
            "images: means of the likelihood; layer 0 is on top; RMS: of the deviation over the pixels",
            *([f"{len(layers)} of {of} layers"] if len(layers) < of else []),
        ],
    )
