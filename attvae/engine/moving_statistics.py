"""The floating-point buffers of a model: what its forward passes update, such as the statistics of batch norms."""

import torch
from torch import Tensor, nn

from attvae.engine.rendezvous import World


class MovingStatistics:
    """Keeps them equal on all ranks, and takes a step back when the update is skipped."""

    def __init__(self, module: nn.Module) -> None:
        self._buffers = [b for b in module.buffers() if b.is_floating_point()]
        self._before: list[Tensor] = []

    def remember(self) -> None:
        self._before = [b.clone() for b in self._buffers]

    @torch.no_grad()
    def restore(self) -> None:
        """As they were when last remembered: what gave no finite gradient may have left them not finite."""
        for b, before in zip(self._buffers, self._before, strict=True):
            b.copy_(before)

    @torch.no_grad()
    def average(self, world: World) -> None:
        """They see each rank's own images: their mean over the ranks is everybody's. Collective."""
        if world.size == 1 or not self._buffers:
            return
        mean = world.sum(torch.cat([b.flatten() for b in self._buffers])) / world.size
        for b, part in zip(self._buffers, mean.split([b.numel() for b in self._buffers]), strict=True):
            b.copy_(part.view_as(b))
