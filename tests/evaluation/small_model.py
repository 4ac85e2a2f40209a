"""A small model with random weights and open gates, for tests of what is made of models."""

from typing import Any

import torch

from attvae.model.config import ModelConfig
from attvae.model.vae import DeepVAE
from attvae.spec import DataSpec

BITS = DataSpec(height=8, width=8, channels=1, num_bits=1, max_value=1, binary=True)
COLOUR = DataSpec(height=8, width=8, channels=3, num_bits=8, max_value=255)

_CONFIG: dict[str, Any] = {
    "num_layers": 4,
    "latent_channels": 2,
    "encoder_filters": 4,
    "decoder_filters": 4,
    "norm": "none",
    "preprocessing": {"scales": [-2]},
    "encoder": {"scales": [0]},
    "decoder": {"scales": [0]},
    "postprocessing": {"scales": [2]},
    "decoder_attention": {"key_dim": 4},
    "encoder_attention": {"key_dim": 4},
}


def small_model(spec: DataSpec = BITS, **changes: Any) -> DeepVAE:
    """In eval mode; the gates are 0.5."""
    torch.manual_seed(0)
    kind = {"kind": "bernoulli"} if spec.binary else {"kind": "logistic_mixture", "num_mixtures": 2}
    model = DeepVAE(ModelConfig.model_validate({**_CONFIG, "likelihood": kind, **changes}), spec).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.constant_(parameter, 0.5)
    return model
