"""Pictures that the model draws. The same seed gives the same noise at every step, so that progress can be seen."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from attvae.evaluation.image_grid import draw_grid, save_png
from attvae.evaluation.image_table import draw_table, tile
from attvae.seeding import Purpose, latent_noise


class Samples(Protocol):
    """A model that can draw images [n, C, H, W] from L tensors of standard normal noise."""

    @property
    def latent_shapes(self) -> Sequence[tuple[int, ...]]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def sample(self, n: int, temperature: float, noise: list[Tensor]) -> Tensor: ...


@torch.no_grad()
def sample_grid(model: Samples, n: int, seed: int, temperature: float, white: int, path: Path) -> None:
    """Writes a PNG of `n` samples. Image i depends on (seed, i) and the model only, which is in eval mode.

    Args:
        white: the pixel value that is white.
    """
    places = [(index, 0) for index in range(n)]
    device = next(model.parameters()).device
    noise = [eps.to(device) for eps in latent_noise(seed, Purpose.SAMPLE, places, model.latent_shapes)]
    save_png(draw_grid(model.sample(n, temperature=temperature, noise=noise), white), path)


def temperatures_picture(samples: Mapping[float, Tensor], white: int, what: str) -> Image.Image:
    """A row of samples [n, C, H, W] for each temperature, one column for the same noise.

    Args:
        white: the pixel value that is white.
        what: says whether these are draws or means.
    """
    return draw_table(
        "samples",
        [""] * len(next(iter(samples.values()))),
        [
            (f"T = {temperature:.1f}", [tile(image, white) for image in images])
            for temperature, images in samples.items()
        ],
        notes=["T: factor of the priors' standard deviations; a column has the same latent noise", what],
    )
