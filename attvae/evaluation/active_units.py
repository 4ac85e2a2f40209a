"""Latent units that say something about the image (Burda, Grosse, Salakhutdinov 2016, section 5.2)."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

ACTIVE_VARIANCE = 0.01
"""A unit u is active if Cov_x(E_q(u | x)[u]), the variance over the images of its posterior mean, is above this."""

_MOMENTS = 4


class LayerUnits(NamedTuple):
    """Of one layer; a unit is a channel at a pixel of the map of the latents.

    Attributes:
        active: units whose variance is above ACTIVE_VARIANCE.
        undecided: units whose variance is within two of its standard errors of it, on either side: how far the count
            may be off for want of images.
        units: all of them.
    """

    active: int
    undecided: int
    units: int


class ActiveUnits:
    """Sums of powers of each unit's posterior mean over images, in double precision.

    In a hierarchy the posterior of a layer, q(z_l | x, z_<l), has a mean that depends on the latents above. It is taken
    here given one draw of them for each image: E[z_l | x, z_<l] with z_<l ~ q(z_<l | x). A unit whose mean only repeats
    the noise of the layers above counts as active too.
    """

    def __init__(self, latent_shapes: Sequence[tuple[int, ...]]) -> None:
        self._images = torch.zeros(1, dtype=torch.float64)
        self._sums = [torch.zeros(_MOMENTS, math.prod(shape), dtype=torch.float64) for shape in latent_shapes]

    def add(self, means: Sequence[Float[Tensor, "b z h w"]], weights: Float[Tensor, "b"]) -> None:
        """Adds the posterior means of each layer; `weights` are 1, or 0 for images that do not count."""
        weights = weights.double()
        self._images += weights.sum().cpu()
        for sums, mean_BZHW in zip(self._sums, means, strict=True):
            mean_BU = mean_BZHW.detach().flatten(1).double()
            power_BU = torch.ones_like(mean_BU)
            for moment in sums:
                power_BU *= mean_BU
                moment += (weights.to(mean_BU.device) @ power_BU).cpu()

    def figures(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> tuple[LayerUnits, ...] | None:
        """Of each layer, over the images of all ranks; None if they are fewer than two. Collective."""
        sizes = [sums.numel() for sums in self._sums]
        totals = sum_over_ranks(torch.cat([self._images, *(sums.flatten() for sums in self._sums)])).cpu()
        n = float(totals[0])
        if n < 2:
            return None
        layers = []
        for part in totals[1:].split(sizes):
            m1, m2, m3, m4 = part.view(_MOMENTS, -1) / n
            spread = (m2 - m1**2).clamp_min(0)
            fourth = (m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4).clamp_min(0)
            variance = spread * n / (n - 1)
            error = ((fourth - spread**2).clamp_min(0) / n).sqrt()
            layers.append(
                LayerUnits(
                    active=int((variance > ACTIVE_VARIANCE).sum()),
                    undecided=int(((variance - ACTIVE_VARIANCE).abs() <= 2 * error).sum()),
                    units=len(variance),
                )
            )
        return tuple(layers)
