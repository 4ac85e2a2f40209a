"""Images/s of a model that keeps keys and values as it samples, and of the same model without (CPU, one thread).

The model is that of configs/photos32.yaml with as many latent layers as asked for, its weights random. Four ways to
draw the same images from the same noise; each repeat goes round all, so that a busy machine strikes all alike:

* `ours`: each context is normalised once, its key and value used where they lie;
* `stacked anew`: as in the authors' code, each layer stacks the keys and values of all earlier contexts and permutes
  them for a matrix product at each pixel;
* `normalised anew`: and each layer normalises all earlier contexts again;
* `uncached`: no key and no value outlives its layer: each computes those above it again from their latents, by the
  same kernels as `ours`.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from attvae.bench.attention import published
from attvae.bench.data import machine
from attvae.bench.spread import as_text, spread
from attvae.engine.throughput import peak_memory_bytes
from attvae.evaluation_noise import sampling_noise
from attvae.model import depth_attention
from attvae.model.config import DepthAttentionConfig, LogisticMixtureConfig, LogScaleConfig, ModelConfig, StackConfig
from attvae.model.depth_attention import Slot
from attvae.model.vae import DeepVAE
from attvae.model.variational_layer import Draw, Given
from attvae.sample import sample_stream
from attvae.spec import DataSpec

SPEC = DataSpec(height=32, width=32, channels=3, num_bits=8, max_value=255)
TEMPERATURE = 0.8
OURS, STACKED, NORMALISED, UNCACHED = "ours", "stacked anew", "normalised anew", "uncached"
MANY = 4
"""Times as many images, to see whether the memory grows with them."""


class Seconds(NamedTuple):
    """Of one measurement."""

    wall: float
    cpu: float
    """That the core worked: other work on it does not count, though it takes its share of caches and memory."""


def measure_sampling(layers: Sequence[int], images: int, repeats: int) -> dict[str, Any]:
    """Measures on the CPU; says on stderr how far it is.

    Args:
        layers: latent layers of each model.
        images: of a measurement, in one forward pass.

    Returns:
        `environment`, the settings, and `rows`, as `row` makes them.

    Raises:
        ValueError: there is nothing to measure.
    """
    if min(images, repeats) < 1 or min(layers, default=0) < 2:
        raise ValueError(
            f"found layers={[*layers]}, images={images}, repeats={repeats}: expected at least 2 layers, for the first "
            "has nothing to attend to, 1 image and 1 repeat"
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        models = [made(height) for height in sorted(layers)]
        memory = [_peak_memory(model, images) for model in models]  # before what takes more
        rows = [
            _measure(model, images, repeats, Console(stderr=True)) | peaks
            for model, peaks in zip(models, memory, strict=True)
        ]
    finally:
        torch.set_num_threads(threads)
    maps = [each.pop("map") for each in rows]
    setting = {"images": images, "map": [*maps[0]], "threads": 1, "temperature": TEMPERATURE}
    return {"environment": machine(), "setting": setting, "repeats": repeats, "rows": rows}


def made(layers: int) -> DeepVAE:
    """The model, whose attentions show in the images."""
    torch.manual_seed(0)
    one_cell = {"num_nodes": 1, "residual_scale": 1.0}
    attention = DepthAttentionConfig(key_dim=4, layer_norm=False, scale="learned")
    config = ModelConfig(
        num_layers=layers,
        latent_channels=8,
        encoder_filters=12,
        decoder_filters=12,
        norm="none",
        init_variance=1.0,
        preprocessing=StackConfig(scales=(-2,), residual_scale=1.0),
        encoder=StackConfig(scales=(0,), **one_cell),
        decoder=StackConfig(scales=(0,), **one_cell),
        postprocessing=StackConfig(scales=(2,), residual_scale=1.0),
        encoder_attention=attention,
        decoder_attention=attention,
        posterior=LogScaleConfig(low=-5.0, high=0.3),
        prior=LogScaleConfig(low=-5.0, high=0.7),
        likelihood=LogisticMixtureConfig(num_mixtures=2),
    )
    model = DeepVAE(config, SPEC).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("gamma"):
                p.fill_(0.5)
    return model


def ways(model: DeepVAE) -> dict[str, Callable[[Sequence[Tensor]], Tensor]]:
    """Latent noise -> the likelihood's raw parameters, in each way."""

    def ours(noise: Sequence[Tensor]) -> Tensor:
        return model.sample_head(len(noise[0]), TEMPERATURE, noise)

    def stacked(noise: Sequence[Tensor]) -> Tensor:
        with _as_published():
            return ours(noise)

    @torch.no_grad()
    def normalised(noise: Sequence[Tensor]) -> Tensor:
        contexts: list[Slot] = []
        z: Tensor | None = None
        with _as_published():
            for layer, eps in zip(model.layers, noise, strict=True):
                # The layer itself normalises the context before the last.
                older = [_normalised(model, j, context) for j, context in enumerate(contexts[:-2])]
                output = layer([*older, *contexts[-2:]], z, Draw(eps, TEMPERATURE))
                contexts.append(output.top_down.slot)
                z = output.z
            assert z is not None
            return model.likelihood_head(contexts[-1].whole, z)

    @torch.no_grad()
    def uncached(noise: Sequence[Tensor]) -> Tensor:
        latents: list[Tensor] = []
        for index, eps in enumerate(noise):
            contexts: list[Slot] = []
            for above, z in enumerate(latents):
                model.layer(above, contexts, latents[above - 1] if above else None, Given(z))
            drawn = model.layer(index, contexts, latents[-1] if latents else None, Draw(eps, TEMPERATURE))
            latents.append(drawn.z)
        return model.likelihood_head(contexts[-1].whole, latents[-1])

    return {OURS: ours, STACKED: stacked, NORMALISED: normalised, UNCACHED: uncached}


def _normalised(model: DeepVAE, index: int, context: Slot) -> Slot:
    norm = model.get_submodule(f"layers.{index + 2}.generative.ctx_layer_norm")
    return Slot.cut(norm(context.whole), context.value.shape[1])


@contextmanager
def _as_published() -> Iterator[None]:
    chosen = mock.patch.object(depth_attention, "choose", return_value=(published, "as published"))
    with chosen, mock.patch.object(depth_attention, "_planes", lambda x: x):  # a layout of ours
        yield


def _measure(model: DeepVAE, images: int, repeats: int, console: Console) -> dict[str, Any]:
    drawn = ways(model)
    noise, pixel_noise = sampling_noise(model, range(images), 0)
    wanted = drawn[OURS](noise)
    for head_of in drawn.values():  # which warms up, too
        torch.testing.assert_close(head_of(noise), wanted, rtol=1e-2, atol=1e-2 * float(wanted.abs().max()))
    seconds: dict[str, list[Seconds]] = {name: [] for name in drawn}
    for repeat in range(1, repeats + 1):
        for name, head_of in drawn.items():
            wall, cpu = time.perf_counter(), time.process_time()
            noise, pixel_noise = sampling_noise(model, range(images), 0)
            model.draw_pixels(head_of(noise), pixel_noise)
            seconds[name].append(Seconds(time.perf_counter() - wall, time.process_time() - cpu))
        rates = ", ".join(f"{name} {images / taken[-1].cpu:,.1f}" for name, taken in seconds.items())
        console.print(f"{len(model.layers)} layers, repeat {repeat} of {repeats}, images per CPU second: {rates}")
    found = row(seconds, images)
    return {
        "map": model.latent_shapes[0][1:],
        "layers": len(model.layers),
        "parameters": sum(p.numel() for p in model.parameters()),
        **found,
    }


def _peak_memory(model: DeepVAE, images: int) -> dict[str, float]:
    """Of the process so far, after so many images, and after more of them, as many at a time."""
    found = {}
    for name, n in (("peak_memory_gb", images), (f"peak_memory_gb_of_{MANY}_times_as_many", MANY * images)):
        for _ in sample_stream(model, n, TEMPERATURE, 0, images):
            pass
        found[name] = peak_memory_bytes(torch.device("cpu")) / 1e9
    return found


def row(seconds: dict[str, list[Seconds]], images: int) -> dict[str, Any]:
    """Of each way the images/s, of wall time and of the core's, and how many times ours is faster, repeat by repeat."""
    found: dict[str, Any] = {}
    for clock in Seconds._fields:
        taken = {name: [getattr(each, clock) for each in of] for name, of in seconds.items()}
        found[f"images_per_{clock}_s"] = {name: spread([images / s for s in of]) for name, of in taken.items()}
        found[f"speedup_{clock}"] = {
            name: spread([s / ours for s, ours in zip(of, taken[OURS], strict=True)])
            for name, of in taken.items()
            if name != OURS
        }
    return found


def table(found: dict[str, Any]) -> Table:
    """The rows, for people, by the core's time."""
    setting = found["setting"]
    shown = Table(
        title=f"Sampling {setting['images']} images at once, maps of {setting['map'][0]} x {setting['map'][1]}, one "
        f"thread, CPU time: median (from the least to the most of {found['repeats']})"
    )
    others = (STACKED, NORMALISED, UNCACHED)
    columns = (f"{OURS}, images/s", *(f"times {name}" for name in others))
    for name in ("layers", *columns, "memory, GB", f"of {MANY} times as many"):
        shown.add_column(name, justify="right")
    for each in found["rows"]:
        rates, speedup = each["images_per_cpu_s"], each["speedup_cpu"]
        shown.add_row(
            str(each["layers"]),
            f"{rates[OURS]['median']:,.1f}",
            *(as_text(speedup[name], 2) for name in others),
            f"{each['peak_memory_gb']:.2f}",
            f"{each[f'peak_memory_gb_of_{MANY}_times_as_many']:.2f}",
        )
    return shown
