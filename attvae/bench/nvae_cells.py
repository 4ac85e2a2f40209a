"""NVAE's residual cells, for comparison, from the paper's description (Vahdat & Kautz 2020, section 3.1, figure 3).

They take the place of ours in a `DeepVAE`; convolutions have the same weight normalisation.
Legend: B batch, C channels, H and W the map.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from attvae.model.batch_norm import BatchNorm
from attvae.model.conv_node import SqueezeExcite
from attvae.model.layers import WeightNormConv2d
from attvae.model.residual_cell import ResidualStack
from attvae.model.vae import DeepVAE
from attvae.model.variational_layer import Generative

EXPANSION = 6
RESIDUAL_SCALE = 0.1


class DepthwiseConv2d(WeightNormConv2d):
    """5 x 5, each channel by itself."""

    def __init__(self, channels: int):
        super().__init__(1, channels, 5)

    def forward(self, x_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return F.conv2d(x_BCHW, self.kernel(), self.bias, padding=2, groups=x_BCHW.shape[1])


class Cell(nn.Module):
    """x + 0.1 f(x)"""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x_BCHW: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return torch.add(x_BCHW, self.layers(x_BCHW), alpha=RESIDUAL_SCALE)


def encoder_cell(channels: int) -> Cell:
    """Twice (norm, swish, 3 x 3 convolution), squeeze and excitation."""
    convs = [WeightNormConv2d(channels, channels, 3) for _ in range(2)]
    layers = [layer for conv in convs for layer in (BatchNorm(channels), nn.SiLU(), conv)]
    return Cell(*layers, SqueezeExcite(channels))


def generative_cell(channels: int) -> Cell:
    """A depth-wise convolution between two 1 x 1 ones, in six times as many channels."""
    wide = EXPANSION * channels
    return Cell(
        BatchNorm(channels),
        WeightNormConv2d(channels, wide, 1),
        BatchNorm(wide),
        nn.SiLU(),
        DepthwiseConv2d(wide),
        BatchNorm(wide),
        nn.SiLU(),
        WeightNormConv2d(wide, channels, 1),
        BatchNorm(channels),
        SqueezeExcite(channels),
    )


def with_nvae_cells(model: DeepVAE) -> DeepVAE:
    """The same model with NVAE's cells, of the same widths, in the latent layers of both paths."""
    lower = [layer.generative for layer in model.layers if isinstance(layer.generative, Generative)]
    for cell, stacks in (
        (encoder_cell, list(model.encoder.cells)),
        (generative_cell, [generative.decoder_cell for generative in lower]),
    ):
        for stack in stacks:
            assert isinstance(stack, ResidualStack)
            stack.blocks = nn.Sequential(*(cell(stack.out_channels) for _ in stack.blocks))
    return model


class SpectralRegularisation:
    """The sum of the largest singular values of a model's kernels, one power iteration a step (section 3.2)."""

    def __init__(self, model: nn.Module):
        self.kernels: dict[nn.Module, Tensor] = {}
        self.vectors: dict[nn.Module, Tensor] = {}
        for module in model.modules():
            if isinstance(module, WeightNormConv2d):
                self.vectors[module] = F.normalize(torch.randn(len(module.v)), dim=0)
                module.kernel = self._remembering(module)  # type: ignore[method-assign]

    def _remembering(self, conv: WeightNormConv2d) -> Any:
        kernel = conv.kernel

        def remembered() -> Tensor:
            self.kernels[conv] = kernel()
            return self.kernels[conv]

        return remembered

    def __call__(self) -> Tensor:
        """Of the kernels of the last forward pass."""
        values = []
        for conv, kernel in self.kernels.items():
            matrix = kernel.flatten(1)
            with torch.no_grad():
                right = F.normalize(matrix.mT @ self.vectors[conv], dim=0)
                left = self.vectors[conv] = F.normalize(matrix @ right, dim=0)
            values.append(left @ matrix @ right)
        self.kernels.clear()
        return torch.stack(values).sum()
