"""Results of a study, made by hand: every figure follows from a few numbers, so that the right answers are known."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from attvae.claims.results import Results, read_results

VARIANTS = ["none", "generative", "inference", "both"]
PIXELS = 64


def cell(
    depth: int,
    variant: str,
    seed: int,
    nelbo: float = 23.0,
    *,
    set_name: str = "depth",
    kl: list[float] | None = None,
    curve: list[list[float]] | None = None,
    s_per_image: float = 1e-3,
    worth: float = 1.0,
    alpha: Callable[[int], list[float]] | None = None,
    device: str = "CPU",
    samples: int = 100_000,
) -> dict[str, Any]:
    """A cell that has ended.

    Args:
        alpha: the probabilities of n contexts, the nearest one first; by default all on the nearest.
    """
    paths = {"none": (), "generative": ("decoder",), "inference": ("encoder",)}.get(variant, ("decoder", "encoder"))
    return {
        **name(set_name, depth, variant, seed),
        "status": "done",
        "reason": None,
        "command": f"attvae train x.yaml model.num_layers={depth} train.seed={seed}",
        "samples": samples,
        "importance_samples": 100,
        "parameters": 30_000 + depth,
        "commit": "f34ec58d" * 5,
        "dirty": False,
        "machine": {"processor": "A processor", "device": device, "cpus": 2, "torch": "2.13.0", "python": "3.11.7"},
        "started": f"2026-11-23T2{seed}:00:00Z",
        "training": {"wall_s": 210.0, "s_per_image": s_per_image},
        "sampling": {"s_per_image": 4e-4},
        "test": {
            "nelbo_nats": {"value": nelbo, "standard_error": 0.2},
            "iw_nll_nats": {"value": nelbo - 1, "standard_error": 0.2},
            "nll_nats": {"value": nelbo - 9, "standard_error": 0.2},
            "bits_per_dim": {"value": nelbo / PIXELS / math.log(2), "standard_error": 0.01},
            "kl_nats_per_layer": kl or [1.0] * depth,
            "images": 297,
        },
        "val": {"nelbo_nats": curve[-1][1] if curve else nelbo + 0.5},
        "test_without_attention": {"nelbo_nats": nelbo + worth} if paths else None,
        "validation_curve": curve or [[20_000, nelbo + 9], [50_000, nelbo + 3], [100_000, nelbo + 0.5]],
        "attention": {path: _attending(path, depth, alpha or _nearest) for path in paths},
    }


def name(set_name: str, depth: int, variant: str, seed: int) -> dict[str, Any]:
    id_ = f"{set_name}/{depth:02d}_{variant}_seed-{seed}"
    return {"id": id_, "set": set_name, "depth": depth, "variant": variant, "seed": seed}


def failed(depth: int, variant: str, seed: int, set_name: str = "depth") -> dict[str, Any]:
    return {**name(set_name, depth, variant, seed), "status": "failed", "reason": "NELBO is NaN after 9,000 samples"}


def missing(depth: int, variant: str, seed: int, set_name: str = "depth") -> dict[str, Any]:
    return {**name(set_name, depth, variant, seed), "status": "missing", "reason": None}


def study(cells: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {
        "study": "digits",
        "about": "Depth-wise attention on 8 x 8 digits.",
        "chosen_on": "the validation images",
        "limits": "Tiny images.",
        "command": "attvae claims configs/claims/digits.yaml",
        "full": False,
        "variants": VARIANTS,
        "sets": {
            "depth": {"about": "Depth against attention.", "full": False},
            "equal_time": {"about": "The baseline with the attentive model's time.", "full": True},
            "photographs": {"about": "32 x 32 patches.", "full": True},
        },
        "cells": list(cells),
    }


def read(*cells: dict[str, Any]) -> Results:
    return read_results(study(cells))


def grid(
    nelbo: Callable[[int, str, int], float], depths: Iterable[int] = (2, 4, 8), **given: Any
) -> list[dict[str, Any]]:
    """All variants and three seeds."""
    return [
        cell(depth, variant, seed, nelbo(depth, variant, seed), **given)
        for depth in depths
        for variant in VARIANTS
        for seed in range(3)
    ]


def relative_entropy(probabilities: list[float]) -> float | None:
    n = len(probabilities)
    return -sum(p * math.log(p) for p in probabilities if p) / math.log(n) if n > 1 else None


def _nearest(n: int) -> list[float]:
    return [1.0] + [0.0] * (n - 1)


def _attending(path: str, depth: int, alpha: Callable[[int], list[float]]) -> dict[str, Any]:
    layers = []
    for layer in range(1 if path == "decoder" else 0, depth):
        attended = list(range(layer)) if path == "decoder" else list(range(layer, depth + 1))
        nearest_first = alpha(len(attended))
        entropy = relative_entropy(nearest_first)
        layers.append(
            {
                "layer": layer,
                "attended": attended,
                "probabilities": nearest_first[::-1] if path == "decoder" else nearest_first,
                "relative_entropy": entropy,
                "effective_contexts": math.exp((entropy or 0.0) * math.log(len(attended))),
                "share_beyond_nearest": 1.0 - nearest_first[0],
            }
        )
    return {"gates": [0.1] * len(layers), "layers": layers}
