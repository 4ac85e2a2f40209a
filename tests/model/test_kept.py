"""Kept memory against sums of saved tensors done by hand, and against what autograd keeps for one and three images."""

import pytest
import torch
from test_cli import ROOT
from torch import Tensor

from attvae.config import load
from attvae.model.config import ModelConfig
from attvae.model.kept import kept_bytes
from attvae.model.vae import DeepVAE
from attvae.spec import DataSpec

DIGITS = DataSpec(height=8, width=8, channels=1, num_bits=8, max_value=16, binary=True)
PHOTOS = DataSpec(height=32, width=32, channels=3, num_bits=8, max_value=255)
CASES = [("configs/test/tiny.yaml", DIGITS), ("configs/photos32.yaml", PHOTOS)]


def saved(config: ModelConfig, spec: DataSpec, images: int, autocast: bool) -> int:
    """Bytes of all storages that a real model's graph holds, but for its own."""
    model = DeepVAE(config, spec)
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    found: dict[int, int] = {}

    def look(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(look, lambda t: t), torch.autocast("cpu", enabled=autocast):
        elbo = model(torch.ones(images, *spec.shape, dtype=torch.uint8))
    assert elbo.nelbo_nats.requires_grad
    return sum(size for pointer, size in found.items() if pointer not in own)


@pytest.mark.parametrize(("config", "spec"), CASES)
@pytest.mark.parametrize("autocast", [False, True])
def test_it_grows_with_the_images_as_counted(config: str, spec: DataSpec, autocast: bool) -> None:
    model = load(ROOT / config).model
    kept = kept_bytes(model, spec, autocast=autocast)
    few, many = (saved(model, spec, images, autocast) for images in (3, 13))
    assert kept.per_image == pytest.approx((many - few) / 10, rel=0.02)
    assert kept.per_pass == pytest.approx(few - 3 * (many - few) / 10, rel=0.1)


def test_recomputing_keeps_less() -> None:
    model = load(ROOT / "configs/photos32.yaml").model
    everything = kept_bytes(model, PHOTOS)
    least = kept_bytes(model, PHOTOS, ("encoder", "layers", "decoder"))
    assert 0 < least.per_image < 0.3 * everything.per_image


def test_autocast_keeps_about_half() -> None:
    """Products take and give numbers of 2 bytes; likelihood and bounds stay in 4."""
    model = load(ROOT / "configs/photos32.yaml").model
    full, half = (kept_bytes(model, PHOTOS, autocast=autocast).per_image for autocast in (False, True))
    assert 0.5 < half / full < 0.9
