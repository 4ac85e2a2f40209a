"""The arithmetic that a model stands for, as a count of floating-point operations (FLOPs)."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from attvae.model.config import ModelConfig
from attvae.model.vae import DeepVAE
from attvae.spec import DataSpec


def training_flops(config: ModelConfig, spec: DataSpec, device: torch.device) -> int:
    """Model FLOPs of one image in training: three times those of the forward pass.

    The backward pass computes two products, for inputs and for weights, where the forward pass computes one. What is
    computed again to save memory does not count (Chowdhery et al. 2022, "PaLM", appendix B). Neither do element-wise
    operations, such as the weighted sums of depth-wise attention: a peak is one of matrix products. A multiplication
    and an addition are two.

    Args:
        device: where a throwaway model runs forward with one image, for as long as that takes.

    Raises:
        ValueError: the images of `spec` do not fit `config`.
    """
    with torch.device("meta"):
        model = DeepVAE(config, spec)
    # Of the weights only the shapes matter. Gradients stay on: the counter's hooks do not work without.
    model = model.to_empty(device=device).eval()
    dtype = torch.uint8 if spec.num_bits <= 8 else torch.uint16
    noise = [torch.zeros(1, *shape, device=device) for shape in model.latent_shapes]
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *spec.shape, dtype=dtype, device=device), noise)
    return 3 * counter.get_total_flops()
