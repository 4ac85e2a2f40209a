"""Where one pixel looks in each non-local block: figures and maps."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from attvae.evaluation.image_table import Cell, Scale, draw_table, heat, marked, tile

_COLUMNS = 4
_MAP_PX = 96


class Watched(Protocol):
    """A model that tells where the pixel `at` looks, in each of its non-local blocks, while it encodes and decodes."""

    def encode(self, x: Tensor, noise: list[Tensor]) -> list[Tensor]: ...
    def mean_image(self, latents: list[Tensor]) -> Tensor: ...

    def watched_spatial_attention(
        self, at: tuple[float, float], watch: Callable[[str, Tensor], None]
    ) -> AbstractContextManager[None]: ...


class SpatialAttention(NamedTuple):
    """Of one block and one image: the probabilities over the pixels of its map."""

    block: str
    probabilities: Float[Tensor, "h w"]

    @property
    def entropy_nats(self) -> float:
        return float(torch.special.entr(self.probabilities.double()).sum())

    @property
    def peak(self) -> float:
        """The largest probability as a multiple of the uniform one."""
        return float(self.probabilities.max()) * self.probabilities.numel()

    def as_json(self) -> dict[str, Any]:
        pixels = self.probabilities.numel()
        return {
            "block": self.block,
            "pixels": pixels,
            "entropy_nats": self.entropy_nats,
            "relative_entropy": self.entropy_nats / math.log(pixels) if pixels > 1 else None,
            "effective_pixels": math.exp(self.entropy_nats),
            "peak_over_uniform": self.peak,
        }


@torch.no_grad()
def spatial_attention_of(
    model: Watched, x: Tensor, noise: list[Tensor], at: tuple[float, float]
) -> list[SpatialAttention]:
    """Each block once, for one image x [1, C, H, W] that is encoded and decoded; none for a model without them."""
    found: dict[str, Tensor] = {}
    with model.watched_spatial_attention(
        at, lambda name, probabilities_BHW: found.update({name: probabilities_BHW[0]})
    ):
        model.mean_image(model.encode(x, noise))
    return [SpatialAttention(*each) for each in found.items()]


def spatial_attention_picture(
    image: Tensor, at: tuple[float, float], blocks: list[SpatialAttention], most: int, white: int
) -> Image.Image:
    """The image with the pixel that asks, and a map for each block, `most` of them evenly spread.

    Args:
        white: the pixel value that is white.
    """
    kept = sorted({round(i) for i in torch.linspace(0, len(blocks) - 1, min(most, len(blocks))).tolist()})
    cells: list[tuple[Cell, ...]] = [("", "image and pixel", marked(tile(image, white, _MAP_PX), at, _size(image)), "")]
    for block in (blocks[i] for i in kept):
        largest = block.probabilities.max()
        picture = marked(heat(block.probabilities / largest, _MAP_PX), at, _size(block.probabilities))
        cells.append((*_two_lines(block.block), picture, f"peak {block.peak:.2g} x uniform"))
    rows: list[tuple[str, list[Cell]]] = []
    for first in range(0, len(cells), _COLUMNS):
        part = cells[first : first + _COLUMNS]
        part += [("", "", None, "")] * (_COLUMNS - len(part))
        rows += [("", list(line)) for line in zip(*part, strict=True)]
    return draw_table(
        "where one pixel looks in the non-local blocks",
        [""] * _COLUMNS,
        rows,
        scale=Scale("0", "peak", "probability, each map up to its own peak"),
        notes=[f"{len(kept)} of {len(blocks)} blocks"] if len(kept) < len(blocks) else [],
    )


def _size(pixels: Tensor) -> tuple[int, int]:
    height, width = pixels.shape[-2:]
    return height, width


def _two_lines(name: str) -> tuple[str, str]:
    """A module's name, broken at the dot nearest to its middle."""
    parts = name.split(".")
    lines = [(".".join(parts[:i]), ".".join(parts[i:])) for i in range(len(parts))]
    return min(lines, key=lambda line: abs(len(line[0]) - len(line[1])))
