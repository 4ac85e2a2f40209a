"""The conv node: what residual cells and all heads are made of.

Legend: B batch, C channels in, O channels out, H and W the map.
"""

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from attvae.model.config import NonLocalConfig, Norm
from attvae.model.layers import WeightNormConv2d, make_norm
from attvae.model.nonlocal_block import NonLocalBlock


class SqueezeExcite(nn.Module):
    """Multiplies each channel by a gate in (0, 1) made from the means of all channels (Hu et al. 2018)."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(channels // 16, 4)
        self.fc1 = WeightNormConv2d(channels, hidden, 1, bias=False)
        self.fc2 = WeightNormConv2d(hidden, channels, 1, bias=False)

    def forward(self, x_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        mean_BC11 = x_BCHW.mean(dim=(2, 3), keepdim=True)
        return x_BCHW * self.fc2(self.fc1(mean_BC11).relu()).sigmoid()


class ConvNode(nn.Module):
    """[norm] -> [non-local block] -> num_convs times (activation -> convolution) -> [squeeze-excite].

    All but the last convolution are 1 x 1 and keep the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        activation: Callable[[Tensor], Tensor] | None,
        norm: Norm = "none",
        non_local: NonLocalConfig | None = None,
        squeeze_excite: bool = False,
        stride: int = 1,
        bias: bool = True,
        num_convs: int = 1,
    ):
        super().__init__()
        self.activation = activation
        self.norm = make_norm(norm, in_channels)
        self.non_local = NonLocalBlock(in_channels, non_local, bias) if non_local else nn.Identity()
        self.conv = nn.ModuleList(
            [WeightNormConv2d(in_channels, in_channels, 1, bias=bias) for _ in range(num_convs - 1)]
        )
        self.conv.append(WeightNormConv2d(in_channels, out_channels, kernel_size, stride, bias))
        self.se = SqueezeExcite(out_channels) if squeeze_excite else nn.Identity()

    def forward(self, x_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h2 w2"]:
        x_BCHW = self.non_local(self.norm(x_BCHW))
        for conv in self.conv:
            x_BCHW = conv(x_BCHW if self.activation is None else self.activation(x_BCHW))
        return self.se(x_BCHW)


def prior_head(in_channels: int, latent_channels: int) -> ConvNode:
    """Context -> raw (mean | log stddev)."""
    return ConvNode(in_channels, 2 * latent_channels, 1, activation=F.elu)


def posterior_head(in_channels: int, latent_channels: int) -> ConvNode:
    """Condition -> raw (mean | log stddev), relative to the prior's. No activation in front, as published."""
    return ConvNode(in_channels, 2 * latent_channels, 3, activation=None)


def first_posterior_head(in_channels: int, latent_channels: int) -> ConvNode:
    """Condition -> raw (mean | log stddev) of the top layer."""
    return ConvNode(in_channels, 2 * latent_channels, 3, activation=F.elu, num_convs=2)


def data_head(in_channels: int, out_channels: int) -> ConvNode:
    """Features at the resolution of the image -> parameters of the likelihood."""
    return ConvNode(in_channels, out_channels, 3, activation=F.elu)
