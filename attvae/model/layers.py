"""The model's elementary layers: weight-normalised convolution, norms, non-linearities.

Legend: B batch, C channels in, O channels out, H and W the map.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from attvae.kernels.layer_norm_gelu import compiled as compiled_layer_norm_gelu
from attvae.kernels.weight_norm import by_torch as weight_norm_by_torch
from attvae.kernels.weight_norm import compiled as compiled_weight_norm
from attvae.model.batch_norm import BatchNorm, SyncBatchNorm
from attvae.model.config import Norm

PUBLISHED_VARIANCE = 0.33
LAYER_NORM_EPS = 1e-5


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
        weight_norm = compiled_weight_norm if compiled_weight_norm.runs_on(self.v, self.log_g) else weight_norm_by_torch
        return weight_norm.weight_norm(self.v, self.log_g)

    def forward(self, x_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h2 w2"]:
        if self.stride == 1 or self.padding == 0:
            return F.conv2d(x_BCHW, self.kernel(), self.bias, self.stride, self.padding)
        return F.conv2d(F.pad(x_BCHW, (0, 1, 0, 1)), self.kernel(), self.bias, self.stride)


class ChannelLayerNorm(nn.Module):
    """Layer normalisation over the channels of each pixel."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        y_BHWC = F.layer_norm(x_BHWC, self.weight.shape, self.weight, self.bias, eps=LAYER_NORM_EPS)
        return y_BHWC.to(x_BCHW.dtype).permute(0, 3, 1, 2)  # on GPUs autocast would leave float32 to all later layers


class LayerNormGelu(ChannelLayerNorm):
    """x + gelu(layer_norm(x)), over the channels of each pixel."""

    def forward(self, x_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if compiled_layer_norm_gelu.runs_on(x_BCHW, self.weight, self.bias):
            return compiled_layer_norm_gelu.layer_norm_gelu(x_BCHW, self.weight, self.bias, LAYER_NORM_EPS)
        return x_BCHW + gelu(super().forward(x_BCHW))


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
