"""Several grids in one hierarchy: what layers attend to is brought to their own (docs/maths.md, "Several grids").

The paper has one grid for all its layers; this is ours. Each grid is half as fine as the next one on both axes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from attvae.model.depth_attention import Slot
from attvae.model.residual_cell import nearest_double


def finer(context: Slot) -> Slot:
    """A context on the next finer grid: each pixel four times, equation 36."""
    # Of the top layer's, which is one for all images, torch would make a map in another layout.
    doubled = nearest_double(context.whole).contiguous(memory_format=torch.channels_last)
    return Slot.cut(doubled, context.value.shape[1])


def coarser(feature: Slot) -> Slot:
    """A bottom-up feature on the next coarser grid: means of 2 x 2 pixels, equation 37."""
    return Slot.cut(F.avg_pool2d(feature.whole, 2), feature.value.shape[1])


def seen_by_layers(features: Sequence[Slot], grids: Sequence[int]) -> list[list[Slot]]:
    """For each layer i, the features e_i ... e_L on its own grid; each is halved once for all layers of a grid.

    Args:
        features: e_0 ... e_L, e_i on the grid of layer i and e_L on that of the last layer.
        grids: `ModelConfig.grids`.
    """
    deeper, before = [features[-1]], grids[-1]
    seen: list[list[Slot]] = []
    for feature, grid in zip(features[-2::-1], reversed(grids), strict=True):
        if grid > before:
            deeper = [coarser(each) for each in deeper]
        deeper, before = [feature, *deeper], grid
        seen.append(deeper)
    return seen[::-1]
