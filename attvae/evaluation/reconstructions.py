"""Images beside what the model makes of them after encoding."""

from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Integer
from PIL import Image
from torch import Tensor

from attvae.evaluation.image_grid import draw_grid, save_png, side_by_side
from attvae.evaluation.image_table import draw_table, tile


class Reconstructs(Protocol):
    """A model that encodes and decodes images [n, C, H, W] with L tensors of standard normal noise."""

    def reconstruct(self, x: Tensor, noise: list[Tensor]) -> Tensor: ...


@torch.no_grad()
def reconstruction_grid(
    model: Reconstructs, x: Integer[Tensor, "n c h w"], noise: list[Tensor], white: int, path: Path
) -> None:
    """Writes a PNG with the originals on the left and their reconstructions on the right. The model is in eval mode.

    Args:
        white: the pixel value that is white.
    """
    panels = {"original": draw_grid(x, white), "reconstruction": draw_grid(model.reconstruct(x, noise), white)}
    save_png(side_by_side(panels), path)


def reconstructions_picture(x: Tensor, means: Tensor, drawn: Tensor, white: int) -> Image.Image:
    """Images [n, C, H, W] above the means of the likelihood, and images drawn from it, given their latents.

    Args:
        white: the pixel value that is white.
    """
    rows = {"image": x, "mean": means, "drawn": drawn}
    return draw_table(
        "reconstructions",
        [""] * len(x),
        [(name, [tile(image, white) for image in images]) for name, images in rows.items()],
        notes=["mean: of the likelihood, given latents from the posteriors; drawn: an image from it"],
    )
