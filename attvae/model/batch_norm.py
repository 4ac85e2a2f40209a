"""Batch normalisation, over the images of a rank or of all ranks.

Legend: B batch, C channels, H and W the map.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

MOMENTUM = 0.1
EPSILON = 1.001e-5  # the authors ask for 1e-5; their fused kernel raises it


_momentum = MOMENTUM


@contextmanager
def kept_statistics() -> Iterator[None]:
    """Within it, forward passes leave the moving statistics alone: they repeat what has been counted already."""
    global _momentum
    _momentum = 0.0
    try:
        yield
    finally:
        _momentum = MOMENTUM


class BatchNorm(nn.Module):
    """Batch normalisation with the authors' effective epsilon. Moving statistics: 0.9 old + 0.1 unbiased batch."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return F.batch_norm(
            x_BCHW,
            self.running_mean,
            self.running_var,
            self.weight.to(self.running_mean.dtype),
            self.bias.to(self.running_mean.dtype),
            training=self.training,
            momentum=_momentum,
            eps=EPSILON,
        )


class SyncBatchNorm(BatchNorm):
    """Batch normalisation by the statistics of all ranks' images, on any backend of torch.distributed.

    A forward pass in training mode and its backward pass are collective; ranks may hold different numbers of images.
    On one rank, and in evaluation, it is `BatchNorm`.
    """

    def forward(self, x_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return super().forward(x_BCHW)
        with torch.autocast(x_BCHW.device.type, enabled=False):
            x = x_BCHW.to(torch.promote_types(x_BCHW.dtype, torch.float32))
            # Sums of deviations from the moving mean, which is near: those of the values themselves would cancel.
            shifted = x - self.running_mean[:, None, None]
            count = x.new_full((1,), x.numel() / x.shape[1])
            sums = torch.cat([shifted.sum(dim=(0, 2, 3)), shifted.square().sum(dim=(0, 2, 3)), count])
            sums = _SumOverRanks.apply(sums)  # type: ignore[no-untyped-call]
            mean, square, n = sums.split([x.shape[1], x.shape[1], 1])
            mean, square = mean / n, square / n
            var = square - mean.square()
            with torch.no_grad():
                self.running_mean.add_(mean, alpha=_momentum)
                self.running_var.lerp_(var * (n / (n - 1)), _momentum)
            factor = self.weight * (var + EPSILON).rsqrt()
            y = torch.addcmul((self.bias - mean * factor)[:, None, None], shifted, factor[:, None, None])
            return y.to(x_BCHW.dtype)


class _SumOverRanks(torch.autograd.Function):
    """The sum of the ranks' tensors; its gradient is the sum of the ranks' gradients, for the sum of their losses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _all_reduced(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _all_reduced(gradient)


def _all_reduced(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total
