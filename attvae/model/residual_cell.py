"""Residual cells and stacks of them (paper, appendix; NVAE's cells with weight normalisation).

Legend: B batch, C channels, H and W the map.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from attvae.model.config import Norm, StackConfig
from attvae.model.conv_node import ConvNode
from attvae.model.layers import WeightNormConv2d


def bilinear_double(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
    """Twice the size; the corners of both maps lie on each other."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


def nearest_double(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c 2*h 2*w"]:
    """Twice the size; each pixel four times."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class DownShortcut(nn.Module):
    """Factorised reduction: each of four 1 x 1 convolutions sees another quarter of the pixels. Even sizes only."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        quarter = out_channels // 4
        self.conv_1 = WeightNormConv2d(in_channels, quarter, 1)
        self.conv_2 = WeightNormConv2d(in_channels, quarter, 1)
        self.conv_3 = WeightNormConv2d(in_channels, quarter, 1)
        self.conv_4 = WeightNormConv2d(in_channels, out_channels - 3 * quarter, 1)

    def forward(self, x_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        y = F.silu(x_BCHW)
        return torch.cat(
            [
                self.conv_1(y[:, :, ::2, ::2]),
                self.conv_2(y[:, :, 1::2, 1::2]),
                self.conv_3(y[:, :, ::2, 1::2]),
                self.conv_4(y[:, :, 1::2, ::2]),
            ],
            dim=1,
        )


class UpShortcut(ConvNode):
    """Bilinear doubling, then the cell's non-local block and a 1 x 1 convolution, both without biases."""

    def __init__(self, in_channels: int, out_channels: int, config: StackConfig):
        super().__init__(in_channels, out_channels, 1, activation=None, non_local=config.non_local, bias=False)

    def forward(self, x_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        return super().forward(bilinear_double(x_BCHW))


class ResidualCell(nn.Module):
    """shortcut(x) + residual_scale * nodes(x); the published scale is 0.1.

    A cell that halves the map doubles the channels, unless `keep_width`; one that doubles the map halves them.
    """

    def __init__(self, in_channels: int, scale: int, config: StackConfig, norm: Norm, *, keep_width: bool = False):
        super().__init__()
        self.scale = scale
        self.residual_scale = config.residual_scale
        match scale:
            case -2:
                out_channels = in_channels if keep_width else 2 * in_channels
                self.shortcut: nn.Module = DownShortcut(in_channels, out_channels)
            case 2:
                out_channels = in_channels // 2
                self.shortcut = UpShortcut(in_channels, out_channels, config)
            case _:
                out_channels = in_channels
                self.shortcut = nn.Identity()
        self.nodes = nn.Sequential(
            *(
                ConvNode(
                    in_channels if n == 0 else out_channels,
                    out_channels,
                    3,
                    activation=F.silu,
                    norm=norm,
                    non_local=config.non_local,
                    squeeze_excite=config.squeeze_excite and n == config.num_nodes - 1,
                    stride=2 if scale == -2 and n == 0 else 1,
                )
                for n in range(config.num_nodes)
            )
        )

    def forward(self, x_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        # The norm of the first node sees the doubled map: its unbiased variance counts the copies, as published.
        source = nearest_double(x_BCHW) if self.scale == 2 else x_BCHW
        return torch.add(self.shortcut(x_BCHW), self.nodes(source), alpha=self.residual_scale)


class ResidualStack(nn.Module):
    """An optional stem, which sets the width, then residual cells.

    With `halve_first` a cell in front of them halves the map and keeps the width.
    """

    def __init__(
        self,
        in_channels: int,
        config: StackConfig,
        norm: Norm,
        stem_channels: int | None = None,
        *,
        halve_first: bool = False,
    ):
        super().__init__()
        self.stem = nn.Identity() if stem_channels is None else WeightNormConv2d(in_channels, stem_channels, 3)
        channels = in_channels if stem_channels is None else stem_channels
        self.blocks = nn.Sequential()
        if halve_first:
            self.blocks.append(ResidualCell(channels, -2, config, norm, keep_width=True))
        for scale in config.scales:
            self.blocks.append(ResidualCell(channels, scale, config, norm))
            channels = channels * 2 if scale == -2 else channels // 2 if scale == 2 else channels
        self.out_channels = channels

    def forward(self, x_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        # Layer norms and attention read all channels of a pixel; on the CPU a training step takes a fifth less time.
        return self.blocks(self.stem(x_BCHW).contiguous(memory_format=torch.channels_last))
