"""How the two inputs of a layer become one: by concatenation (generative path), by a sum (inference path)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attvae.model.config import NonLocalConfig
from attvae.model.layers import WeightNormConv2d
from attvae.model.nonlocal_block import NonLocalBlock


class ConcatMerge(nn.Module):
    """conv(a || z) [-> non-local block]."""

    def __init__(self, a_channels: int, z_channels: int, out_channels: int, non_local: NonLocalConfig | None):
        super().__init__()
        self.conv = WeightNormConv2d(a_channels + z_channels, out_channels, 1)
        self.non_local = NonLocalBlock(out_channels, non_local) if non_local else nn.Identity()

    def forward(self, a_BCHW: Float[Tensor, "b c h w"], z_BZHW: Float[Tensor, "b z h w"]) -> Float[Tensor, "b o h w"]:
        # Latents are float32 whatever the precision of the features.
        return self.non_local(self.conv(torch.cat([a_BCHW, z_BZHW.to(a_BCHW.dtype)], dim=1)))


class SumMerge(nn.Module):
    """conv_a(a) + conv_b(b) [-> non-local block]; conv_a is the identity where it would keep the width."""

    def __init__(self, a_channels: int, b_channels: int, out_channels: int, non_local: NonLocalConfig | None):
        super().__init__()
        self.conv_a = nn.Identity() if a_channels == out_channels else WeightNormConv2d(a_channels, out_channels, 1)
        self.conv_b = WeightNormConv2d(b_channels, out_channels, 1)
        self.non_local = NonLocalBlock(out_channels, non_local) if non_local else nn.Identity()

    def forward(self, a_BCHW: Float[Tensor, "b c h w"], b_BCHW: Float[Tensor, "b c2 h w"]) -> Float[Tensor, "b o h w"]:
        return self.non_local(self.conv_a(a_BCHW) + self.conv_b(b_BCHW))
