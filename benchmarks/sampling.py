"""Images/s of `attvae sample` against the same models sampled without what it keeps (CPU, one thread).

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/sampling.py > benchmarks/results/sampling_HARDWARE_DATE.json

Models with random weights and L latent layers, depth-wise attention as published, small widths. Three ways to draw the
same images, batch by batch, noise included:

kept           what `attvae sample` does: each context is normalised once, its key and value used where they lie
stacked anew   as in the authors' code, each layer stacks the keys and values of all earlier contexts and permutes them
               to attend by a matrix product
nothing kept   and each layer normalises all earlier contexts again

Rounds measure all three in turn, so that other work on the machine hits them alike: `speedup` is the median over the
rounds of the ratio within a round.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from attvae.bench.data import machine
from attvae.evaluation_noise import sampling_noise
from attvae.model import depth_attention
from attvae.model.config import DepthAttentionConfig, LogisticMixtureConfig, ModelConfig, StackConfig
from attvae.model.vae import DeepVAE
from attvae.model.variational_layer import Draw
from attvae.spec import DataSpec

SPEC = DataSpec(height=16, width=16, channels=3, num_bits=8, max_value=255)
ATTENTION = DepthAttentionConfig(key_dim=8)
ONE_CELL = {"num_nodes": 1}
TEMPERATURE = 0.8


def model_of(layers: int) -> DeepVAE:
    torch.manual_seed(0)
    config = ModelConfig(
        num_layers=layers,
        latent_channels=4,
        encoder_filters=8,
        decoder_filters=16,
        preprocessing=StackConfig(scales=(-2,), **ONE_CELL),
        encoder=StackConfig(scales=(0,), **ONE_CELL),
        decoder=StackConfig(scales=(0,), **ONE_CELL),
        postprocessing=StackConfig(scales=(2,), **ONE_CELL),
        encoder_attention=ATTENTION,
        decoder_attention=ATTENTION,
        likelihood=LogisticMixtureConfig(num_mixtures=2),
    )
    model = DeepVAE(config, SPEC).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("gamma"):  # at 0 the attention would not show in the images
                p.fill_(0.5)
    return model


def stacked_attention(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """`depth_attention` as published: everything stacked and permuted for a matrix product at each pixel."""
    keys_BHWnK = torch.stack([*keys], dim=1).permute(0, 3, 4, 1, 2).contiguous()
    values_BHWnC = torch.stack([*values], dim=1).permute(0, 3, 4, 1, 2).contiguous()
    weights_BHW1n = (query.permute(0, 2, 3, 1).unsqueeze(3) @ keys_BHWnK.transpose(3, 4)).softmax(dim=4)
    return (weights_BHW1n @ values_BHWnC).squeeze(3).permute(0, 3, 1, 2)


def head_with_nothing_kept(model: DeepVAE, noise: Sequence[Tensor]) -> Tensor:
    raw: list[Tensor] = []
    z = None
    for layer, eps in zip(model.layers, noise, strict=True):
        # The layer itself normalises the context before the last.
        older = [model.layers[j + 2].generative.ctx_layer_norm(context) for j, context in enumerate(raw[:-2])]
        output = layer([*older, *raw[-2:]], z, Draw(eps, TEMPERATURE))
        raw.append(output.top_down.context)
        z = output.z
    return model.decoder(raw[-1], z).head


@torch.no_grad()
def measure(layers: int, batch: int, batches: int, rounds: int) -> dict[str, Any]:
    model = model_of(layers)

    def of_model(noise: list[Tensor]) -> Tensor:
        return model.sample_head(batch, TEMPERATURE, noise)

    def stacked() -> AbstractContextManager[Any]:
        return mock.patch.object(depth_attention, "depth_attention", stacked_attention)

    ways: dict[str, tuple[Callable[[], AbstractContextManager[Any]], Callable[[list[Tensor]], Tensor]]] = {
        "kept": (nullcontext, of_model),
        "stacked anew": (stacked, of_model),
        "nothing kept": (stacked, lambda noise: head_with_nothing_kept(model, noise)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    wanted = of_model(sampling_noise(model, range(batch), 0)[0])
    for round_ in range(rounds + 1):  # the first one warms up
        for name, (context, head_of) in ways.items():
            begun = time.perf_counter()
            with context():
                for k in range(batches):
                    noise, pixel_noise = sampling_noise(model, range(k * batch, (k + 1) * batch), 0)
                    head = head_of(noise)
                    model.draw_pixels(head, pixel_noise)
                    if round_ == 0 and k == 0:
                        torch.testing.assert_close(head, wanted, rtol=1e-3, atol=1e-3)
            if round_:
                seconds[name].append(time.perf_counter() - begun)
    images = batch * batches
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "images_per_s": {name: _spread([images / s for s in times]) for name, times in seconds.items()},
        "speedup": {
            name: _spread([s / kept for s, kept in zip(times, seconds["kept"], strict=True)])
            for name, times in seconds.items()
            if name != "kept"
        },
    }


def _spread(values: list[float]) -> dict[str, float]:
    first, median, third = statistics.quantiles(values, n=4)
    return {"median": round(median, 3), "quartile_1": round(first, 3), "quartile_3": round(third, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--batch", type=int, default=64, help="images of a forward pass")
    parser.add_argument("--batches", type=int, default=2, help="forward passes of a measurement")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    about = machine()
    figures = {}
    for layers in args.layers:
        figures[f"L={layers}"] = measure(layers, args.batch, args.batches, args.rounds)
        print(f"L={layers}: {figures[f'L={layers}']}", file=sys.stderr)
    about["load_average_1min_at_end"] = os.getloadavg()[0]
    print(json.dumps({"machine": about, "settings": vars(args), "figures": figures}, indent=1))


if __name__ == "__main__":
    main()
