"""The arithmetic that a model stands for, as a count of floating-point operations (FLOPs)."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from attvae.model.config import ModelConfig
from attvae.model.parts import PARTS, parts
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
    return 3 * _counted_forward(_throwaway(config, spec, device)).get_total_flops()


def forward_flops_by_part(config: ModelConfig, spec: DataSpec, device: torch.device) -> dict[str, int]:
    """Model FLOPs of one image's forward pass in each of the model's parts; arguments and errors as above."""
    model = _throwaway(config, spec, device)
    counts = _counted_forward(model).get_flop_counts()
    flops = dict.fromkeys(PARTS, 0)
    for part, name, _ in parts(model):
        counted = counts.get(f"{type(model).__name__}.{name}", {})
        flops[part] += sum(counted.values())
    return flops


def _throwaway(config: ModelConfig, spec: DataSpec, device: torch.device) -> DeepVAE:
    with torch.device("meta"):
        model = DeepVAE(config, spec)
    return model.to_empty(device=device).eval()  # of the weights only the shapes matter


def _counted_forward(model: DeepVAE) -> FlopCounterMode:
    spec, device = model.spec, next(model.parameters()).device
    dtype = torch.uint8 if spec.num_bits <= 8 else torch.uint16
    noise = [torch.zeros(1, *shape, device=device) for shape in model.latent_shapes]
    # Gradients stay on: the counter's hooks do not work without.
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *spec.shape, dtype=dtype, device=device), noise)
    return counter
