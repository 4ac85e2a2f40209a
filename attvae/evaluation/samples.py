"""Pictures that the model draws. The same seed gives the same noise at every step, so that progress can be seen."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from attvae.evaluation.image_grid import draw_grid, save_png
from attvae.seeding import Purpose, latent_noise


class Samples(Protocol):
    """A model that can draw images [n, C, H, W] from L tensors of standard normal noise."""

    @property
    def latent_shapes(self) -> Sequence[tuple[int, ...]]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def sample(self, n: int, temperature: float, noise: list[Tensor]) -> Tensor: ...


@torch.no_grad()
def sample_grid(model: Samples, n: int, seed: int, temperature: float, path: Path) -> None:
    """Writes a PNG of `n` samples. Image i depends on (seed, i) and the model only, which is in eval mode."""
    places = [(index, 0) for index in range(n)]
    device = next(model.parameters()).device
    noise = [eps.to(device) for eps in latent_noise(seed, Purpose.SAMPLE, places, model.latent_shapes)]
    save_png(draw_grid(model.sample(n, temperature=temperature, noise=noise)), path)
