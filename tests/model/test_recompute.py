"""Activations that are computed again: less is kept, nothing else changes."""

import torch
from torch import Tensor

from attvae.model.config import BernoulliConfig, DepthAttentionConfig, LogScaleConfig, ModelConfig, StackConfig
from attvae.model.vae import DeepVAE
from attvae.spec import DataSpec

SPEC = DataSpec(height=8, width=8, channels=1, num_bits=1, max_value=1, binary=True)
CONFIG = ModelConfig(
    num_layers=4,
    latent_channels=2,
    encoder_filters=8,
    decoder_filters=8,
    preprocessing=StackConfig(scales=(-2,)),
    postprocessing=StackConfig(scales=(2,)),
    encoder_attention=DepthAttentionConfig(key_dim=4),
    decoder_attention=DepthAttentionConfig(key_dim=4),
    norm="batch",
    posterior=LogScaleConfig(noise_stddev=0.1),  # noise that is drawn inside the model
    prior=LogScaleConfig(noise_stddev=0.1),
    likelihood=BernoulliConfig(),
)
PARTS = ("encoder", "layers", "decoder")


def trained(*recompute: str) -> tuple[dict[str, Tensor], int]:
    """Loss, gradients and buffers after a forward and a backward pass; elements that were kept between the two."""
    torch.manual_seed(0)
    model = DeepVAE(CONFIG, SPEC, recompute=recompute)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))  # no gate stays closed
    x = torch.randint(0, 2, (5, 1, 8, 8), dtype=torch.uint8)
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = model(x).nelbo_nats.sum()
    loss.backward()
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(model.parameters()))
    return {"loss": loss.detach(), **gradients, **dict(model.named_buffers())}, kept


def test_nothing_but_memory_changes() -> None:
    expected, most = trained()
    for parts in [(part,) for part in PARTS]:
        found, kept = trained(*parts)
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], msg=lambda text, name=name: f"{name}: {text}")
        assert kept < most, parts
    assert trained(*PARTS)[1] < 0.1 * most  # what remains is what goes from part to part
