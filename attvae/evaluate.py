"""The figures of a trained model: composes data, model and evaluators."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attvae import checkpoint, config, export
from attvae.checkpoint import Checkpoint
from attvae.config import EvaluateConfig, RunConfig
from attvae.data.config import DataConfig
from attvae.data.loader import eval_batches, open_manifest
from attvae.data.manifest import Manifest, Split
from attvae.engine.rendezvous import World
from attvae.evaluation.codecs import CODECS, codec_bytes
from attvae.evaluation.elbo import ElboFigures, evaluate_elbo
from attvae.evaluation_noise import EVALUATION_SEED, with_evaluation_noise
from attvae.model.vae import DeepVAE
from attvae.run_folder import RunFolder

EXPORT_BATCH = 100
"""Images per forward pass where no run's configuration says."""


class Evaluation(NamedTuple):
    """What is evaluated on which data; `draws` and `batch` change precision and memory, not the meaning."""

    model: DeepVAE
    manifest: Manifest
    data: DataConfig
    world: World
    draws: int
    batch: int

    def of(self, split: Split) -> ElboFigures:
        """The ELBO over all images of a split, each `draws` times with new noise (and binarisation). Collective."""
        return evaluate_elbo(
            self.model,
            self._batches(split),
            layers=len(self.model.latent_shapes),
            spec=self.manifest.spec,
            sum_over_ranks=self.world.sum,
        )

    def _batches(self, split: Split) -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
        for draw in range(self.draws):
            batches = eval_batches(
                self.manifest, self.data, split, EVALUATION_SEED, draw, self.batch, self.world.rank, self.world.size
            )
            while (batch := self.world.all_or_none(partial(next, batches, None))) is not None:
                yield *with_evaluation_noise(self.model, batch.x, batch.ids, draw, self.world.device), batch.weights


def final_figures(evaluation: Evaluation) -> dict[str, Any]:
    """The figures of `summary.json` that depend on the weights alone. Collective.

    `test_without_depth_attention` has the attention's contribution set to zero: equal figures mean dead attention.
    """
    model, manifest = evaluation.model, evaluation.manifest
    figures: dict[str, Any] = {"test": _as_json(evaluation.of("test")), "val": _as_json(evaluation.of("val"))}
    gates = model.attention_gates()
    if gates:
        with model.without_depth_attention():
            figures["test_without_depth_attention"] = _as_json(evaluation.of("test"))
    figures["attention_gates"] = {name: float(gate) for name, gate in gates.items()}
    if manifest.spec.num_bits == 8 and manifest.spec.channels in (1, 3) and not manifest.spec.binary:
        figures["codecs_bits_per_dim"] = _codecs_bits_per_dim(evaluation)
    return figures


def _codecs_bits_per_dim(evaluation: Evaluation) -> dict[str, float]:
    manifest, world = evaluation.manifest, evaluation.world
    batches = eval_batches(manifest, evaluation.data, "test", EVALUATION_SEED, 0, 10, world.rank, world.size)
    sums = torch.zeros(1 + len(CODECS), dtype=torch.float64)  # images, bytes by each codec
    while (batch := world.all_or_none(partial(next, batches, None))) is not None:
        x = batch.x[batch.weights > 0]
        sums += torch.tensor([len(x), *(codec_bytes(x, manifest.spec, codec) for codec in CODECS)])
    images, *sizes = world.sum(sums).tolist()
    return {codec: 8 * size / (images * manifest.spec.dimensions) for codec, size in zip(CODECS, sizes, strict=True)}


def evaluation_of(model: DeepVAE, cfg: RunConfig, manifest: Manifest, world: World) -> Evaluation:
    """A run's evaluation as its configuration says; images that are not binary are drawn once."""
    draws = cfg.evaluate.binarisations if manifest.spec.binary else 1
    return Evaluation(model, manifest, cfg.data, world, draws, cfg.eval.batch)


def evaluate_run(path: Path, world: World) -> dict[str, Any]:
    """Figures of a run folder's newest checkpoint, with its EMA weights.

    Raises:
        ValueError: the folder is no run, or has no complete checkpoint.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise ValueError(f"{path} is neither a run folder (no config.yaml) nor an export (no model.json)")
    cfg = config.load(folder.config)
    checkpoints = checkpoint.complete(folder.checkpoints)
    if not checkpoints:
        raise ValueError(f"{path} has no complete checkpoint yet: run `attvae train` on it first")
    trained = Checkpoint(checkpoints[-1])
    manifest = open_manifest(cfg.data)
    model = DeepVAE(cfg.model, manifest.spec)
    trained.load_into(model, weights="ema")
    return final_figures(evaluation_of(model.to(world.device), cfg, manifest, world))


def evaluate_export(path: Path, data: Path, world: World) -> dict[str, Any]:
    """Figures of an export folder on a prepared data set.

    Raises:
        ValueError: the export is damaged, or the data are not of the images that its model takes.
    """
    model = export.load(path).to(world.device)
    manifest = Manifest.read(data)
    if manifest.spec != model.spec:
        raise ValueError(f"{path} models {model.spec!r}, but {data} holds {manifest.spec!r}: name the data it is for")
    defaults = EvaluateConfig()
    draws = defaults.binarisations if manifest.spec.binary else 1
    return final_figures(Evaluation(model, manifest, DataConfig(path=data), world, draws, EXPORT_BATCH))


def _as_json(figures: ElboFigures) -> dict[str, Any]:
    return {
        "nelbo_nats": figures.nelbo_nats,
        "nll_nats": figures.nll_nats,
        "kl_nats_per_layer": list(figures.kl_nats_per_layer),
        "bits_per_dim": figures.bits_per_dim,
        "images": figures.images,
    }
