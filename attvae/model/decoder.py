"""From the last context and latent to the parameters of the likelihood (paper, section 3.1)."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from attvae.model.config import ModelConfig
from attvae.model.conv_node import data_head
from attvae.model.merge import ConcatMerge
from attvae.model.residual_cell import ResidualStack


class Decoded(NamedTuple):
    """`merged` [B, D + ke, h, w] enters the post-processing, `head` [B, parameters, H, W] parametrises the pixels."""

    merged: Tensor
    head: Tensor


class Decoder(nn.Module):
    """Merge, post-processing stacks, data head."""

    def __init__(self, config: ModelConfig, head_channels: int):
        super().__init__()
        channels = config.context_width
        self.merge = ConcatMerge(channels, config.latent_channels, channels, config.decoder_merge)
        self.postprocessing = nn.Sequential()
        for _ in range(config.num_proc_blocks):
            stack = ResidualStack(channels, config.postprocessing, config.norm)
            self.postprocessing.append(stack)
            channels = stack.out_channels
        self.head = data_head(channels, head_channels)

    def forward(self, context_BCHW: Float[Tensor, "b c h w"], z_BZHW: Float[Tensor, "b z h w"]) -> Decoded:
        merged_BCHW = self.merge(context_BCHW, z_BZHW)
        return Decoded(merged_BCHW, self.head(self.postprocessing(merged_BCHW)))
