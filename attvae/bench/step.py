"""Forward and backward pass of an attentive model on one thread: what it costs, and what its parts do to that.

All contenders have 16 latent layers of 16 x 16 x 20 for 32 x 32 x 3 images, and see the same random images. They run
one after the other in each repeat, so that a busy machine strikes all alike. What is measured is the processor's time:
other work beside it counts less.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from attvae.bench.data import machine
from attvae.bench.nvae_cells import SpectralRegularisation, with_nvae_cells
from attvae.bench.spread import as_text, spread
from attvae.distributions import logistic_mixture
from attvae.kernels.layer_norm_gelu import compiled as compiled_layer_norm_gelu
from attvae.kernels.weight_norm import compiled as compiled_weight_norm
from attvae.model.config import (
    DepthAttentionConfig,
    LogisticMixtureConfig,
    ModelConfig,
    NonLocalConfig,
    StackConfig,
)
from attvae.model.layers import WeightNormConv2d
from attvae.model.residual_cell import ResidualStack
from attvae.model.vae import DeepVAE
from attvae.spec import DataSpec

SPEC = DataSpec(height=32, width=32, channels=3, num_bits=8, max_value=255)
WARMUP_STEPS = 1
OURS = "attentive"


class Contender(NamedTuple):
    """A training step: `step` runs forward and backward within `conditions`."""

    model: DeepVAE
    forward: Callable[[Tensor, Sequence[Tensor]], Tensor]
    conditions: Callable[[], AbstractContextManager[Any]] = nullcontext

    def loss(self, x: Tensor, noise: Sequence[Tensor]) -> Tensor:
        return self.forward(x, noise)

    def step(self, x: Tensor, noise: Sequence[Tensor]) -> None:
        for p in self.model.parameters():
            p.grad = None
        with self.conditions():
            self.loss(x, noise).backward()


def attentive(
    encoder_filters: int = 28, decoder_filters: int = 20, key_dim: int | None = 8, non_local: int | None = None
) -> ModelConfig:
    """The paper's model, narrower. Cells have 64 channels: CPUs multiply by 16 or 8 at a time."""
    attention = DepthAttentionConfig(key_dim=key_dim) if key_dim else None
    block = NonLocalConfig(key_dim=non_local) if non_local else None
    return ModelConfig(
        num_layers=16,
        latent_channels=20,
        encoder_filters=encoder_filters,
        decoder_filters=decoder_filters,
        preprocessing=StackConfig(scales=(0, -2), non_local=block),
        encoder=StackConfig(non_local=block),
        decoder=StackConfig(non_local=block),
        encoder_attention=attention,
        decoder_attention=attention,
        likelihood=LogisticMixtureConfig(),
    )


def contenders() -> dict[str, Contender]:
    """Ours first. `torch.compile` is not among them: on a CPU its gradients are wrong (docs/engine.md)."""
    own = DeepVAE(attentive(), SPEC)
    nvae = with_nvae_cells(DeepVAE(attentive(32, 32, key_dim=None), SPEC))
    regularised = with_nvae_cells(DeepVAE(attentive(32, 32, key_dim=None), SPEC))
    spectral = SpectralRegularisation(regularised)
    found = {
        OURS: _plain(own),
        "depth-wise attention switched off": Contender(own, partial(_nelbo, own), own.without_depth_attention),
        "without attention, equal parameters": _plain(DeepVAE(attentive(32, 32, key_dim=None), SPEC)),
        "with non-local blocks": _plain(DeepVAE(attentive(non_local=8), SPEC)),
        "NVAE's cells": _plain(nvae),
        "NVAE's cells, spectral regularisation": Contender(
            regularised, lambda x, noise: _nelbo(regularised, x, noise) + spectral()
        ),
        "not channels-last": Contender(own, partial(_nelbo, own), _channels_first),
        "weight normalisation by torch": Contender(own, partial(_nelbo, own), _weight_norm_by_torch),
        "layer norm and GELU by torch": Contender(own, partial(_nelbo, own), _layer_norm_gelu_by_torch),
        "likelihood by autograd": Contender(own, partial(_nelbo, own), _plain_likelihood),
    }
    for parts in (("encoder",), ("layers",), ("encoder", "layers", "decoder")):
        found[f"recompute {', '.join(parts)}"] = _plain(DeepVAE(attentive(), SPEC, recompute=parts))
    return found


def _plain(model: DeepVAE) -> Contender:
    return Contender(model, partial(_nelbo, model))


def _nelbo(model: Any, x: Tensor, noise: Sequence[Tensor]) -> Tensor:
    elbo: Tensor = model(x, noise).nelbo_nats
    return elbo.mean()


def _weight_norm_by_torch() -> AbstractContextManager[Any]:
    return patch.object(compiled_weight_norm, "runs_on", lambda *_: False)


def _layer_norm_gelu_by_torch() -> AbstractContextManager[Any]:
    return patch.object(compiled_layer_norm_gelu, "runs_on", lambda *_: False)


@contextmanager
def _channels_first() -> Iterator[None]:
    def forward(stack: ResidualStack, x: Tensor) -> Tensor:
        y: Tensor = stack.blocks(stack.stem(x).contiguous())
        return y

    def kernel(conv: WeightNormConv2d, channels_last: Any = WeightNormConv2d.kernel) -> Tensor:
        return channels_last(conv).contiguous()

    with patch.object(ResidualStack, "forward", forward), patch.object(WeightNormConv2d, "kernel", kernel):
        yield


def _log_prob_by_autograd(
    x: Tensor, mixture: logistic_mixture.LogisticMixture, max_value: int, edges: logistic_mixture.Edges
) -> Tensor:
    """All channels at once."""
    x, bins_of = x.unsqueeze(2), logistic_mixture._normalised_bins
    log_scales = logistic_mixture._log_scales(mixture, edges)
    bins = bins_of(x, x - mixture.locations(x.squeeze(2)), log_scales, max_value).log_p
    return (bins.sum(dim=1) + mixture.logits.log_softmax(dim=1)).logsumexp(dim=1).sum(dim=(1, 2))


def _plain_likelihood() -> AbstractContextManager[Any]:
    return patch.object(logistic_mixture, "log_prob", _log_prob_by_autograd)


def measure_step(batch: int, repeats: int) -> dict[str, Any]:
    """Measures on one thread of the CPU; says on stderr how far it is.

    Args:
        batch: images of a step.
        repeats: rounds in which each contender makes one step.

    Returns:
        `environment`, settings, `attention_share` (of depth-wise attention in the step), and `rows`: for each contender
        the processor's seconds per image for both passes, how many times those of ours, repeat by repeat, and the
        memory kept between the passes.

    Raises:
        ValueError: there is nothing to measure.
    """
    if min(batch, repeats) < 1:
        raise ValueError(f"found batch={batch}, repeats={repeats}: expected at least 1 of each")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randint(0, 256, (batch, *SPEC.shape), dtype=torch.uint8)
    running = contenders()
    noise = [torch.randn(batch, *shape) for shape in running[OURS].model.latent_shapes]
    console = Console(stderr=True)
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for repeat in range(-WARMUP_STEPS, repeats):
        for name, contender in running.items():
            start = time.process_time()
            contender.step(x, noise)
            found = (time.process_time() - start) / batch
            if repeat >= 0:
                seconds[name].append(found)
        if repeat >= 0:
            console.print(f"repeat {repeat + 1} of {repeats}: {OURS} {seconds[OURS][-1]:.4f} s per image")
    muted = seconds["depth-wise attention switched off"]
    return {
        "environment": machine(),
        "batch": batch,
        "repeats": repeats,
        "attention_share": spread([1 - without / own for without, own in zip(muted, seconds[OURS], strict=True)]),
        "rows": [
            {
                "contender": name,
                "parameters": sum(p.numel() for p in contender.model.parameters()),
                "cpu_s_per_image": spread(seconds[name]),
                "times_ours": spread([one / own for one, own in zip(seconds[name], seconds[OURS], strict=True)]),
                "kept_mb_per_image": kept_mb(contender, x, noise) / batch,
            }
            for name, contender in running.items()
        ],
    }


def kept_mb(contender: Contender, x: Tensor, noise: Sequence[Tensor]) -> float:
    """What autograd keeps between the passes, beyond the parameters; every storage counts once."""
    seen = {p.untyped_storage().data_ptr() for p in contender.model.parameters()}
    total = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal total
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:  # the graph keeps it: no other can take its place
            seen.add(storage.data_ptr())
            total += storage.nbytes()
        return tensor

    with contender.conditions(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = contender.loss(x, noise)
    del loss  # which has kept everything until here
    return total / 1e6


def table(found: dict[str, Any]) -> Table:
    """The rows, for people."""
    share = found["attention_share"]
    shown = Table(
        title=f"Forward and backward pass on one thread, batches of {found['batch']}: median (from the least to the "
        f"most of {found['repeats']}); depth-wise attention is {as_text(share, 3)} of it"
    )
    shown.add_column("")
    for name in ("parameters", "CPU-seconds per image", "times ours", "kept, MB per image"):
        shown.add_column(name, justify="right")
    for row in found["rows"]:
        shown.add_row(
            row["contender"],
            f"{row['parameters']:,}",
            as_text(row["cpu_s_per_image"], 4),
            as_text(row["times_ours"], 2),
            f"{row['kept_mb_per_image']:.1f}",
        )
    return shown
