"""Bottom-up pass: image -> deterministic features e_0 ... e_L (paper, section 3.1)."""

from jaxtyping import Float
from torch import Tensor, nn

from attvae.model.config import ModelConfig
from attvae.model.recompute import recomputed
from attvae.model.residual_cell import ResidualStack


class Encoder(nn.Module):
    """Pre-processing stacks, then one stack of cells per latent layer. Features hold values, then the key.

    The stack of a layer whose grid is coarser than that of the layer below begins with a cell that halves the map.

    With `recompute` each stack's activations are computed again in the backward pass.
    """

    def __init__(self, config: ModelConfig, image_channels: int, *, recompute: bool = False):
        super().__init__()
        self.recompute = recompute
        channels = image_channels
        width = config.encoder_filters + config.encoder_key_dim // 2**config.halvings
        self.preprocessing = nn.Sequential()
        for _ in range(config.num_proc_blocks):  # as published, each has a stem
            stack = ResidualStack(channels, config.preprocessing, config.norm, stem_channels=width)
            self.preprocessing.append(stack)
            channels = width = stack.out_channels
        below = (*config.grids[1:], 0)
        self.cells = nn.ModuleList(
            ResidualStack(channels, config.encoder, config.norm, halve_first=grid > grid_below)
            for grid, grid_below in zip(config.grids, below, strict=True)
        )

    def forward(self, u_BCHW: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b e _ _"]]:
        """e_0 ... e_L for an image in [-1, 1]; e_L comes first out of the pre-processing, e_0 is the deepest."""
        for stack in self.preprocessing:
            u_BCHW = self._run(stack, u_BCHW)
        features = [u_BCHW]
        for cell in reversed(self.cells):
            features.append(self._run(cell, features[-1]))
        return features[::-1]

    def _run(self, stack: nn.Module, x_BCHW: Tensor) -> Tensor:
        return recomputed(stack, x_BCHW) if self.recompute else stack(x_BCHW)
