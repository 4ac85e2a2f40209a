"""Depth-wise attention of one image as maps: at each pixel, how much a layer takes from each context."""

from collections.abc import Mapping, Sequence
from typing import Literal

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from attvae.evaluation.image_table import TILE_PX, Cell, Scale, draw_table, heat, tile

_WIDEST_PX = 1600


def depth_attention_maps_picture(
    image: Tensor,
    maps: Mapping[str, Float[Tensor, "n h w"]],
    path: Literal["decoder", "encoder"],
    layers: Sequence[int],
    of: int,
    total: int,
    white: int,
) -> Image.Image:
    """A row for each of `layers`, a column for each context (generative path) or feature (inference path).

    Args:
        image: [C, H, W], beside the maps.
        maps: as `depth_attention_maps` gives them.
        of: how many layers there are to choose `layers` from.
        total: layers of the model, L.
        white: the pixel value that is white.
    """
    columns = range(total - 1) if path == "decoder" else range(total + 1)
    px = min(TILE_PX, _WIDEST_PX // len(columns))
    rows: list[tuple[str, list[Cell]]] = []
    for layer in layers:
        if (slots := maps.get(f"{path}/layer_{layer:02d}")) is not None:
            first = layer if path == "encoder" else 0
            cells: list[Cell] = [None if rows else tile(image, white)]
            cells += [heat(slots[m - first], px) if first <= m < first + len(slots) else None for m in columns]
            rows.append((f"layer {layer}", cells))
    name, what = ("generative", "context of layer") if path == "decoder" else ("inference", "bottom-up feature")
    return draw_table(
        f"depth-wise attention of the {name} path",
        ["image", *map(str, columns)],
        rows,
        scale=Scale("0", "1", "probability at each pixel"),
        notes=[f"columns: {what}", *([f"{len(layers)} of {of} layers"] if len(layers) < of else [])],
    )
