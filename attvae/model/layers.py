"""The model's elementary layers: weight-normalised convolution, norms, non-linearities.

Legend: B batch, C channels in, O channels out, H and W the map.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from attvae.model.config import Norm


def scaled_uniform_(parameter: Tensor, fan_in: int) -> None:
    """Uniform initialisation of variance 0.33 / fan_in, in place."""
    bound = math.sqrt(0.99 / fan_in)
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

    def kernel(self) -> Float[Tensor, "o c kh kw"]:
        """The effective kernel."""
        norm_O = self.v.flatten(1).norm(dim=1).clamp_min(1e-6)
        return self.v * (self.log_g.exp() / norm_O)[:, None, None, None]

    def forward(self, x_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h2 w2"]:
        if self.stride == 1 or self.padding == 0:
            return F.conv2d(x_BCHW, self.kernel(), self.bias, self.stride, self.padding)
        return F.conv2d(F.pad(x_BCHW, (0, 1, 0, 1)), self.kernel(), self.bias, self.stride)


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
            self.weight,
            self.bias,
            training=self.training,
            momentum=0.1,
            eps=1.001e-5,
        )


class ChannelLayerNorm(nn.Module):
    """Layer normalisation over the channels of each pixel."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        return F.layer_norm(x_BHWC, self.weight.shape, self.weight, self.bias, eps=1e-5).permute(0, 3, 1, 2)


def make_norm(norm: Norm, channels: int) -> nn.Module:
    """The norm in front of a residual cell's convolutions."""
    match norm:
        case "batch":
            return BatchNorm(channels)
        case "group":  # up to 8 groups of equal size
            return nn.GroupNorm(math.gcd(channels, 8), channels)
        case "none":
            return nn.Identity()


def gelu(x: Tensor) -> Tensor:
    """The tanh approximation, as published."""
    return F.gelu(x, approximate="tanh")
