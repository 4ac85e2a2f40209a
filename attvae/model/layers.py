"""The model's elementary layers: weight-normalised convolution, norms, non-linearities.

Legend: B batch, C channels in, O channels out, H and W the map.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from attvae.model.batch_norm import BatchNorm, SyncBatchNorm
from attvae.model.config import Norm

PUBLISHED_VARIANCE = 0.33
MIN_NORM = 1e-6
"""Of a direction v, as published: a zero kernel stays one."""


def scaled_uniform_(parameter: Tensor, fan_in: int) -> None:
    """The published initialisation: uniform of variance 0.33 / fan_in, in place."""
    bound = math.sqrt(3 * PUBLISHED_VARIANCE / fan_in)
    nn.init.uniform_(parameter, -bound, bound)


class WeightNormConv2d(nn.Module):
    """Convolution with kernel exp(log_g) v / ||v|| (Salimans & Kingma 2016), TensorFlow's SAME padding.

    With stride 2 (for even sizes) a 3 x 3 kernel is padded after the map, not before.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, bias: bool = True):
        super().__init__()
        self.stride = stride
        self.padding = kernel_size // 2
        self.v = nn.Parameter(torch.empty(out_channels, in_channels, kernel_size, kernel_size))
        self.log_g = nn.Parameter(torch.empty(out_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The gain starts at e^0.01 ||v||: as the authors' first call leaves it."""
        scaled_uniform_(self.v, fan_in=self.v[0].numel())
        self.log_g.copy_(0.5 * self.v.square().sum(dim=(1, 2, 3)).log() + 0.01)
        if self.bias is not None:
            scaled_uniform_(self.bias, fan_in=len(self.bias))

    @torch.no_grad()
    def scale_init(self, factor: float) -> None:
        """Multiplies the initial kernel, direction and gain alike, so that updates stay in proportion to it."""
        self.v.mul_(factor)
        self.log_g.add_(math.log(factor))

    def kernel(self) -> Float[Tensor, "o c kh kw"]:
        """The effective kernel."""
        return _WeightNorm.apply(self.v, self.log_g)  # type: ignore[no-untyped-call]

    def forward(self, x_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h2 w2"]:
        if self.stride == 1 or self.padding == 0:
            return F.conv2d(x_BCHW, self.kernel(), self.bias, self.stride, self.padding)
        return F.conv2d(F.pad(x_BCHW, (0, 1, 0, 1)), self.kernel(), self.bias, self.stride)


class _WeightNorm(torch.autograd.Function):
    """exp(log_g) v / ||v||, per output channel.

    With u = v / ||v|| and the kernel's gradient G: dL/dlog_g = exp(log_g) <G, u>, dL/dv = exp(log_g) / ||v|| (G -
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


class ChannelLayerNorm(nn.Module):
    """Layer normalisation over the channels of each pixel."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        y_BHWC = F.layer_norm(x_BHWC, self.weight.shape, self.weight, self.bias, eps=1e-5)
        return y_BHWC.to(x_BCHW.dtype).permute(0, 3, 1, 2)  # on GPUs autocast would leave float32 to all later layers


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """The norm in front of a residual cell's convolutions."""
    match norm:
        case "batch":
            return BatchNorm(channels)
        case "sync_batch":
            return SyncBatchNorm(channels)
        case "group":  # up to 8 groups of equal size
            return nn.GroupNorm(math.gcd(channels, 8), channels)
        case "none":
            return nn.Identity()


def gelu(x: Tensor) -> Tensor:
    """The tanh approximation, as published."""
    return F.gelu(x, approximate="tanh")
