"""torch.compile sees a training forward pass whole: every break is a guard, a launch, and code that is not fused."""

from typing import Any

import torch
from torch import Tensor

from attvae.model.config import ModelConfig
from attvae.model.vae import DeepVAE
from attvae.objective import training_loss
from attvae.spec import DataSpec

COLOUR = DataSpec(height=8, width=8, channels=3, num_bits=8, max_value=255)
MODEL: dict[str, Any] = {
    "num_layers": 3,
    "latent_channels": 2,
    "encoder_filters": 4,
    "decoder_filters": 4,
    "preprocessing": {"scales": [-2]},
    "encoder": {"scales": [0]},
    "decoder": {"scales": [0]},
    "postprocessing": {"scales": [2]},
    "encoder_attention": {"key_dim": 4},
    "decoder_attention": {"key_dim": 4},
    "posterior": {"noise_stddev": 0.0},
    "prior": {"noise_stddev": 0.0},
    "likelihood": {"kind": "logistic_mixture", "num_mixtures": 2},
}


def test_no_graph_break() -> None:
    torch.manual_seed(0)
    model = DeepVAE(ModelConfig(**MODEL), COLOUR).train()
    x = torch.randint(256, (2, *COLOUR.shape)).to(torch.uint8)
    noise = [torch.randn(2, *shape) for shape in model.latent_shapes]

    def loss() -> Tensor:
        elbo = model(x, noise)
        return training_loss(elbo.nll_nats, elbo.kl_nats, 1.0)

    torch.compiler.reset()
    found = torch.compile(loss, backend="eager", fullgraph=True)()  # which refuses a break
    torch.testing.assert_close(found, loss())
