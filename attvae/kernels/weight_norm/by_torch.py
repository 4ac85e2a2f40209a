"""Weight-normalised kernels by torch's operations, on any device and in any precision. Legend: O output channels."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

MIN_NORM = 1e-6
"""Of a direction v, as published: a zero kernel stays one."""


def weight_norm(v: Float[Tensor, "o i kh kw"], log_g: Float[Tensor, " o"]) -> Float[Tensor, "o i kh kw"]:
    """exp(log_g) v / ||v||, per output channel, channels-last. Second derivatives are an error."""
    kernel: Tensor = _WeightNorm.apply(v, log_g)  # type: ignore[no-untyped-call]
    return kernel


class _WeightNorm(torch.autograd.Function):
    """With u = v / ||v|| and the kernel's gradient G: dL/dlog_g = exp(log_g) <G, u>, dL/dv = exp(log_g) / ||v|| (G -
    <G, u> u) (Salimans & Kingma 2016, equation 3).
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor, log_g: Tensor) -> Tensor:
        norm_O = v.flatten(1).norm(dim=1).clamp_min(MIN_NORM)
        factor_O = log_g.exp() / norm_O
        ctx.save_for_backward(v, norm_O, factor_O)
        # As the maps are: a convolution would copy the kernel in both passes.
        return (v * factor_O[:, None, None, None]).contiguous(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        v, norm_O, factor_O = ctx.saved_tensors
        gradient = gradient.flatten(1)
        unit = v.flatten(1) / norm_O[:, None]  # the square of the norm would leave fp16's range
        along_O = (gradient * unit).sum(dim=1) * factor_O
        radial_O = along_O.masked_fill(norm_O <= MIN_NORM, 0)  # a clamped norm is a constant
        grad_v = torch.mul(gradient, factor_O[:, None]).addcmul_(unit, radial_O[:, None], value=-1)
        return grad_v.view_as(v), along_O * norm_O
