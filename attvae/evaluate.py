"""The figures of a trained model: composes data, model and evaluators."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attvae import checkpoint, config, seeding
from attvae.checkpoint import Checkpoint
from attvae.config import RunConfig
from attvae.data.loader import eval_batches
from attvae.data.manifest import Manifest, Split
from attvae.engine.rendezvous import World
from attvae.evaluation.codecs import CODECS, codec_bits_per_dim
from attvae.evaluation.elbo import ElboFigures, evaluate_elbo
from attvae.model.vae import DeepVAE
from attvae.run_folder import RunFolder
from attvae.seeding import Purpose

EVALUATION_SEED = 0
"""Binarisations and latent noise of evaluations are the same for all runs, whatever seed they train with."""


def evaluate_split(
    model: DeepVAE, cfg: RunConfig, manifest: Manifest, split: Split, world: World, draws: int
) -> ElboFigures:
    """The ELBO over all images of a split, `draws` times with new noise (and binarisations). Collective."""

    def batches() -> Iterator[tuple[Tensor, list[Tensor]]]:
        for draw in range(draws):
            for batch in eval_batches(
                manifest, cfg.data, split, EVALUATION_SEED, draw, cfg.eval.batch, world.rank, world.size
            ):
                yield with_evaluation_noise(model, batch.x, batch.ids, draw, world.device)

    return evaluate_elbo(
        model, batches(), layers=len(model.latent_shapes), spec=manifest.spec, sum_over_ranks=world.sum
    )


def with_evaluation_noise(
    model: DeepVAE, x: Tensor, ids: Tensor, draw: int, device: torch.device
) -> tuple[Tensor, list[Tensor]]:
    """The images and the noise that belongs to (sample id, draw), on the device."""
    places = [(int(i), draw) for i in ids]
    noise = seeding.latent_noise(EVALUATION_SEED, Purpose.EVALUATE, places, model.latent_shapes)
    return x.to(device), [eps.to(device) for eps in noise]


def evaluate_model(model: DeepVAE, cfg: RunConfig, manifest: Manifest, world: World) -> dict[str, Any]:
    """The figures of `summary.json` that depend on the weights alone. Collective.

    `test_without_depth_attention` has the attention's contribution set to zero: equal figures mean dead attention.
    """
    draws = cfg.evaluate.binarisations if manifest.spec.binary else 1
    figures: dict[str, Any] = {
        "test": _as_json(evaluate_split(model, cfg, manifest, "test", world, draws)),
        "val": _as_json(evaluate_split(model, cfg, manifest, "val", world, draws)),
    }
    gates = model.attention_gates()
    if gates:
        with model.without_depth_attention():
            without = evaluate_split(model, cfg, manifest, "test", world, draws)
        figures["test_without_depth_attention"] = _as_json(without)
    figures["attention_gates"] = {name: float(gate) for name, gate in gates.items()}
    if manifest.spec.num_bits == 8 and manifest.spec.channels in (1, 3):
        figures["codecs_bits_per_dim"] = {
            codec: codec_bits_per_dim(
                (batch.x for batch in eval_batches(manifest, cfg.data, "test", EVALUATION_SEED, 0, 100, 0, 1)),
                manifest.spec,
                codec,
            )
            for codec in CODECS
        }
    return figures


def evaluate_run(path: Path, world: World) -> dict[str, Any]:
    """Figures of a run folder's newest checkpoint, with its EMA weights.

    Raises:
        ValueError: the folder is no run, or has no complete checkpoint.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise ValueError(f"{path} is no run folder: it has no config.yaml; name one that `attvae train` wrote")
    cfg = config.load(folder.config)
    checkpoints = checkpoint.complete(folder.checkpoints)
    if not checkpoints:
        raise ValueError(f"{path} has no complete checkpoint yet: run `attvae train` on it first")
    trained = Checkpoint(checkpoints[-1])
    manifest = Manifest.read(cfg.data.path)
    model = DeepVAE(cfg.model, manifest.spec)
    trained.load_into(model, weights="ema")
    figures = evaluate_model(model.to(world.device), cfg, manifest, world)
    return figures | {"samples_seen": trained.samples_seen}


def _as_json(figures: ElboFigures) -> dict[str, Any]:
    return {
        "nelbo_nats": figures.nelbo_nats,
        "nll_nats": figures.nll_nats,
        "kl_nats_per_layer": list(figures.kl_nats_per_layer),
        "bits_per_dim": figures.bits_per_dim,
        "images": figures.images,
    }
