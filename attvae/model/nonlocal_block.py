"""Non-local block: self-attention between the pixels of a map (Wang et al. 2018; paper, section 3.1).

Legend: B batch, C channels, H and W the map, N and S pixels that ask and that answer, K key width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from attvae.model.config import NonLocalConfig
from attvae.model.layers import ChannelLayerNorm, WeightNormConv2d


class NonLocalBlock(nn.Module):
    """x + gamma * attention(x), softmax over the keys of scale * <q_a, k_b>; scale and gamma are learned scalars."""

    def __init__(self, channels: int, config: NonLocalConfig, bias: bool = True):
        super().__init__()
        self.subsample = config.subsample
        self.query = WeightNormConv2d(channels, config.key_dim, 1, bias=bias)
        self.key = WeightNormConv2d(channels, config.key_dim, 1, bias=bias)
        self.value = WeightNormConv2d(channels, channels, 1, bias=bias)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.scale = nn.Parameter(torch.ones(1)) if config.learned_scale else None
        self.layer_norm = config.layer_norm
        if config.layer_norm:
            self.ln_a = ChannelLayerNorm(channels)
            self.ln_b = ChannelLayerNorm(channels)
            self.ln_conv = WeightNormConv2d(channels, channels, 1, bias=bias)

    def forward(self, x_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if not self.layer_norm:
            return x_BCHW + self.gamma * self._attention(x_BCHW)
        y_BCHW = x_BCHW + self.gamma * self._attention(self.ln_a(x_BCHW))
        return x_BCHW + self.ln_conv(self.ln_b(y_BCHW))

    def probabilities(self, x_BCHW: Float[Tensor, "b c h w"], row: int, column: int) -> Float[Tensor, "b h2 w2"]:
        """What `forward` weighs the pixels with for the one that asks; half the size where keys are subsampled."""
        if self.layer_norm:
            x_BCHW = self.ln_a(x_BCHW)
        key_BKHW = self.key(self._source(x_BCHW))
        query_BK11 = self.query(x_BCHW[:, :, row : row + 1, column : column + 1])
        if self.scale is not None:
            query_BK11 = query_BK11 * self.scale
        scores_BHW = (query_BK11 * key_BKHW).sum(dim=1)
        return scores_BHW.flatten(1).softmax(dim=1).view_as(scores_BHW)

    def _source(self, x_BCHW: Tensor) -> Tensor:
        return F.max_pool2d(x_BCHW, 2) if self.subsample else x_BCHW

    def _attention(self, x_BCHW: Tensor) -> Tensor:
        source_BCHW = self._source(x_BCHW)
        query_BNK = self.query(x_BCHW).flatten(2).transpose(1, 2)
        key_BSK = self.key(source_BCHW).flatten(2).transpose(1, 2)
        value_BSC = self.value(source_BCHW).flatten(2).transpose(1, 2)
        if self.scale is not None:
            query_BNK = query_BNK * self.scale
        out_BNC = F.scaled_dot_product_attention(query_BNK, key_BSK, value_BSC, scale=1.0)
        return out_BNC.transpose(1, 2).unflatten(2, x_BCHW.shape[2:])
