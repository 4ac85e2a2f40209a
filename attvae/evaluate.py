"""The figures of a trained model: composes data, model and evaluators."""

import json
import math
import os
import shlex
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from attvae import checkpoint, config, export
from attvae.checkpoint import Checkpoint
from attvae.config import EvaluateConfig, RunConfig
from attvae.data.config import DataConfig
from attvae.data.loader import eval_batches, open_manifest
from attvae.data.manifest import Manifest, Split
from attvae.data.shard import DamagedError
from attvae.engine.rendezvous import World
from attvae.evaluation.active_units import ACTIVE_VARIANCE, LayerUnits
from attvae.evaluation.codecs import CODECS, codec_bytes
from attvae.evaluation.feature_network import FeatureNetwork
from attvae.evaluation.image_means import Estimate
from attvae.evaluation.precision_recall import NEIGHBOURS
from attvae.evaluation.split_figures import DrawnBatch, SplitFigures, evaluate_split
from attvae.evaluation_noise import EVALUATION_SEED, evaluation_noise
from attvae.model.vae import DeepVAE
from attvae.quality import LEAST, Quality, quality
from attvae.run_folder import RunFolder, write_json
from attvae.spec import DataSpec
from attvae.tracking.secrets import without_secrets

EXPORT_BATCH = 100
"""Images per forward pass where no run's configuration says."""


class Evaluation(NamedTuple):
    """What is evaluated on which data. `batch` changes memory alone, `draws` and `importance_samples` the precision."""

    model: DeepVAE
    manifest: Manifest
    data: DataConfig
    world: World
    draws: int
    batch: int
    seed: int = EVALUATION_SEED
    importance_samples: int | None = None

    def of(self, split: Split) -> SplitFigures:
        """The figures over all images of a split, each `draws` times with new noise (and binarisation). Collective."""
        return evaluate_split(
            self.model,
            (self._batches(split, draw) for draw in range(self.draws)),
            latent_shapes=self.model.latent_shapes,
            spec=self.manifest.spec,
            sum_over_ranks=lambda sums: self.world.sum(sums).cpu(),
            importance_samples=self.importance_samples,
        )

    def _batches(self, split: Split, draw: int) -> Iterator[DrawnBatch]:
        device = self.world.device
        batches = eval_batches(
            self.manifest, self.data, split, self.seed, draw, self.batch, self.world.rank, self.world.size
        )
        while (batch := self.world.all_or_none(partial(next, batches, None))) is not None:
            noise = partial(evaluation_noise, self.model, batch.ids, draw, device, self.seed)
            yield DrawnBatch(batch.x.to(device), noise, batch.weights)


def final_figures(evaluation: Evaluation) -> dict[str, Any]:
    """The figures of `summary.json` that depend on the weights alone. Collective.

    `test_without_depth_attention` has the attention's contribution set to zero: equal figures mean dead attention.
    """
    model, manifest = evaluation.model, evaluation.manifest
    figures: dict[str, Any] = {split: _summary(evaluation.of(split)) for split in ("test", "val")}
    gates = model.attention_gates()
    if gates:
        with model.without_depth_attention():
            figures["test_without_depth_attention"] = _summary(evaluation.of("test"))
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


# --------------------------------------------------------------------------------------------------- a trained model


class Trained(NamedTuple):
    """A model from a run folder or an export, on the CPU in evaluation mode, and what is known of its training.

    Attributes:
        about: path, kind, checkpoint, samples_seen, weights and trained_on, for JSON; None for what is not known.
        config: of the run; None of an export.
        forced: why it was not to be evaluated, or exported, had its user not insisted: marks of every figure.
    """

    model: DeepVAE
    about: dict[str, Any]
    config: RunConfig | None
    forced: tuple[str, ...]


def open_trained(path: Path, *, force: bool = False) -> Trained:
    """The model of an export, or of a finished run's last checkpoint with its EMA weights.

    Args:
        force: take an unfinished run's newest checkpoint too, and plain weights where there is no EMA.

    Raises:
        ValueError: neither run nor export; damaged; no complete checkpoint; or what only `force` takes.
    """
    if export.is_export(path):
        stated = export.read_config(path)
        about = {
            "path": str(path),
            "kind": "export",
            "checkpoint": None,
            "samples_seen": stated.samples_seen,
            "weights": stated.weights,
            "trained_on": stated.trained_on.model_dump() if stated.trained_on else None,
        }
        return Trained(export.load(path), about, None, stated.forced)
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise ValueError(f"{path} is neither a run folder (no config.yaml) nor an export (no model.json)")
    cfg = config.load(folder.config)
    checkpoints = checkpoint.complete(folder.checkpoints)
    if not checkpoints:
        raise ValueError(f"{path} has no complete checkpoint yet: run `attvae train` on it first")
    newest = Checkpoint(checkpoints[-1])
    forced = []
    if newest.samples_seen < cfg.train.samples:
        forced.append(f"unfinished: {newest.samples_seen:,} of {cfg.train.samples:,} samples seen")
        if not force:
            raise ValueError(
                f"{path} is {forced[-1]} at its newest checkpoint: let `attvae train` finish it, "
                "or add --force for figures that are marked as such"
            )
    weights = "ema"
    if not newest.has("ema"):
        weights = "parameters"
        forced.append("plain weights, for the checkpoint has no EMA")
        if not force:
            raise ValueError(
                f"{newest.folder} has no EMA of the weights, which is what is evaluated: name another run, or add "
                "--force for figures of the plain weights, marked as such"
            )
    known_spec, trained_on = _trained_on(folder, newest)
    model = DeepVAE(cfg.model, known_spec or open_manifest(cfg.data).spec)
    newest.load_into(model, weights=weights)
    about = {
        "path": str(path),
        "kind": "run",
        "checkpoint": newest.folder.name,
        "samples_seen": newest.samples_seen,
        "weights": weights,
        "trained_on": trained_on,
    }
    return Trained(model.eval(), about, cfg, tuple(forced))


def _trained_on(folder: RunFolder, newest: Checkpoint) -> tuple[DataSpec | None, dict[str, str | None]]:
    """The images and the data set of a run's training; runs of before said no more than the fingerprint."""
    stated: dict[str, Any] = {}
    environment = folder.path / "environment.json"
    if environment.is_file():
        try:
            stated = json.loads(environment.read_text()).get("dataset") or {}
        except ValueError as error:
            raise ValueError(f"{environment} is damaged: {error}") from error
    trained_on = {"name": stated.get("name"), "version": stated.get("version")}
    trained_on["fingerprint"] = newest.state["data_fingerprint"]
    return (DataSpec.model_validate(stated["spec"]) if "spec" in stated else None), trained_on


# ------------------------------------------------------------------------------------------------- `attvae evaluate`


class Features(NamedTuple):
    """What `attvae evaluate --features` is asked: samples against the images of the split, in a network's features.

    Attributes:
        samples: how many; None: as many as images.
    """

    path: Path
    sha256: str
    samples: int | None = None
    temperature: float = 1.0


class Asked(NamedTuple):
    """What `attvae evaluate` is asked beside the model; None: as the run's configuration says.

    Attributes:
        data: of a prepared data set, in place of the run's own; an export needs it.
        importance_samples: K of the importance-weighted bound; None leaves that out.
        force: go on, marking every figure, where figures could be misunderstood.
        features: for the figures of docs/quality.md; None leaves those out.
    """

    split: Split = "test"
    data: str | None = None
    importance_samples: int | None = None
    batch: int | None = None
    draws: int | None = None
    seed: int = EVALUATION_SEED
    force: bool = False
    features: Features | None = None


def evaluate(path: Path, asked: Asked, world: World) -> dict[str, Any]:
    """The figures of a run or an export on a split, for JSON. Collective.

    Raises:
        ValueError: the model or the data cannot be had, do not fit, or fit with --force only.
        FailedOnAnotherRankError: in place of these, where another rank says it.
    """
    trained, evaluation, forced, network = world.all_or_none(lambda: _prepare(path, asked, world))
    manifest = evaluation.manifest
    try:
        figures = evaluation.of(asked.split)
    except DamagedError as error:
        raise ValueError(
            f"{error}: prepare the data again, or add --force for figures of the sound images, marked as such"
        ) from error
    if left_out := manifest.samples(asked.split) - figures.images:
        forced.append(f"{left_out} of the {manifest.samples(asked.split)} images are damaged and left out")
    found = _quality(evaluation, asked, network) if network else None
    return {
        "model": trained.about,
        "data": {
            "path": evaluation.data.path,
            "name": manifest.name,
            "version": manifest.version,
            "fingerprint": manifest.fingerprint,
        },
        "split": asked.split,
        "images": figures.images,
        "draws": figures.draws,
        "iw": asked.importance_samples,
        "seed": asked.seed,
        "forced": forced,
        "features": _compared(asked, network, found) if network and found else None,
        "figures": {**_report(figures, forced), **_report_quality(found, forced)},
    }


def open_data(trained: Trained, path: str | None) -> tuple[DataConfig, Manifest]:
    """The data at a path, read as the training read its own; None: the run's own.

    Raises:
        ValueError: no prepared data; or an export, which does not know where its data are, and no path.
    """
    if trained.config is not None:
        data = trained.config.data
        if path is not None:
            data = data.model_copy(update={"path": path, "dataset": None})
        return data, open_manifest(data)
    if path is None:
        raise ValueError(
            f"{trained.about['path']} is an export, which does not know where its data are: name them with --data"
        )
    data = DataConfig(path=path)
    manifest = open_manifest(data)
    height, width = trained.model.spec.height, trained.model.spec.width
    known = trained.about["trained_on"] or {}
    if height == width != manifest.spec.width and manifest.fingerprint == known.get("fingerprint"):
        data = data.model_copy(update={"size": height})  # nothing else can have made a model of this size of them
        manifest = open_manifest(data)
    return data, manifest


def check_report(file: str | None) -> None:
    """Before the work: whether the figures can be written there.

    Raises:
        ValueError: not into that folder, or it is one itself.
    """
    if file is None or file == "-":
        return
    path = Path(file)
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK) or path.is_dir():
        raise ValueError(f"--json {path} cannot be written: name a file in a folder that exists and can be written")


def write_report(file: str, report: dict[str, Any]) -> None:
    """Writes the figures, and the command that gives them, whole or not at all; `-` is stdout."""
    command = without_secrets(shlex.join(["attvae", *sys.argv[1:]]))
    if file == "-":
        print(json.dumps({"command": command, **report}, indent=1))
    else:
        write_json(Path(file), {"command": command, **report})


def _prepare(path: Path, asked: Asked, world: World) -> tuple[Trained, Evaluation, list[str], FeatureNetwork | None]:
    if asked.features:
        _check(asked.features)
    trained = open_trained(path, force=asked.force)
    cfg = trained.config
    data, manifest = open_data(trained, asked.data)
    # A training may go on without some of its images, but a figure of a part of the split is another figure.
    data = data.model_copy(update={"on_damage": "skip" if asked.force else "raise"})
    manifest.shards(asked.split)
    if manifest.spec != trained.model.spec:
        raise ValueError(
            f"{path} models {trained.model.spec!r}, but {data.path} holds {manifest.spec!r}: name the data it is for"
        )
    forced = [*trained.forced]
    if difference := other_data(trained, manifest):
        forced.append(f"other data than the training's: {difference}")
        if not asked.force:
            raise ValueError(
                f"{path} was not trained on what {data.path} holds ({difference}): name the data of the training with "
                "--data, or add --force for figures that are marked as such"
            )
    draws = (cfg.evaluate if cfg else EvaluateConfig()).binarisations if manifest.spec.binary else 1
    evaluation = Evaluation(
        model=trained.model.to(world.device),
        manifest=manifest,
        data=data,
        world=world,
        draws=asked.draws or draws,
        batch=asked.batch or (cfg.eval.batch if cfg else EXPORT_BATCH),
        seed=asked.seed,
        importance_samples=asked.importance_samples,
    )
    return trained, evaluation, forced, _feature_network(asked.features, manifest.spec) if asked.features else None


def _check(features: Features) -> None:
    if not math.isfinite(features.temperature) or features.temperature < 0:
        raise ValueError(f"--temperature {features.temperature}: a finite number from 0 up is needed")
    if features.samples is not None and features.samples < LEAST:
        raise ValueError(f"--samples {features.samples}: {LEAST} at least, for each has {NEIGHBOURS} nearest others")


def _feature_network(features: Features, spec: DataSpec) -> FeatureNetwork:
    return FeatureNetwork(features.path, features.sha256, spec.shape, spec.white)


def _quality(evaluation: Evaluation, asked: Asked, network: FeatureNetwork) -> Quality:
    assert asked.features, "it names the network"
    return quality(
        evaluation.model,
        evaluation.manifest,
        evaluation.data,
        evaluation.world,
        network,
        split=asked.split,
        samples=asked.features.samples or evaluation.manifest.samples(asked.split),
        temperature=asked.features.temperature,
        batch=evaluation.batch,
        seed=asked.seed,
    )


def other_data(trained: Trained, manifest: Manifest) -> str | None:
    """What differs first between these data and those of the training, as far as they are known."""
    known = trained.about["trained_on"] or {}
    for name in ("name", "version", "fingerprint"):
        found, expected = getattr(manifest, name), known.get(name)
        if expected is not None and found != expected:
            return f"{name} {found}, not {expected}"
    return None


def _summary(figures: SplitFigures) -> dict[str, Any]:
    """A split's figures in `summary.json`."""
    elbo = figures.elbo()
    return {
        "nelbo_nats": elbo.nelbo_nats,
        "nll_nats": elbo.nll_nats,
        "kl_nats_per_layer": list(elbo.kl_nats_per_layer),
        "bits_per_dim": elbo.bits_per_dim,
        "images": figures.images,
        "draws": figures.draws,
        "standard_error": {
            "nelbo_nats": figures.nelbo_nats.standard_error,
            "nll_nats": figures.nll_nats.standard_error,
            "kl_nats_per_layer": [kl.standard_error for kl in figures.kl_nats_per_layer],
            "bits_per_dim": figures.bits_per_dim.standard_error,
        },
        "active_units": _active_units(figures.active_units) if figures.active_units else None,
    }


def _report(figures: SplitFigures, forced: list[str]) -> dict[str, Any]:
    """A split's figures as `attvae evaluate` reports them: each an object that says when it is not to be trusted."""

    def marked(estimate: Estimate) -> dict[str, Any]:
        return {**estimate._asdict(), "forced": forced}

    units = figures.active_units
    return {
        "nelbo_nats": marked(figures.nelbo_nats),
        "bits_per_dim": marked(figures.bits_per_dim),
        "iw_nll_nats": marked(figures.iw_nll_nats) if figures.iw_nll_nats else None,
        "iw_bits_per_dim": marked(figures.iw_bits_per_dim) if figures.iw_bits_per_dim else None,
        "nll_nats": marked(figures.nll_nats),
        "kl_nats": marked(figures.kl_nats),
        "kl_nats_per_layer": [{"layer": layer, **marked(kl)} for layer, kl in enumerate(figures.kl_nats_per_layer)],
        "active_units": {**_active_units(units), "forced": forced} if units else None,
    }


def _compared(asked: Asked, network: FeatureNetwork, found: Quality) -> dict[str, Any]:
    """What the distance, precision and recall are of."""
    assert asked.features, "it names the network"
    images, samples = found.compared
    return {
        "network": str(network.path),
        "sha256": network.sha256,
        "dimensions": network.dimensions,
        "images": found.images,
        "samples": found.samples,
        "temperature": asked.features.temperature,
        "neighbours": NEIGHBOURS,
        "compared_images": images,
        "compared_samples": samples,
    }


def _report_quality(found: Quality | None, forced: list[str]) -> dict[str, Any]:
    names = ("frechet_distance", "precision", "recall")
    return {name: {**getattr(found, name)._asdict(), "forced": forced} if found else None for name in names}


def _active_units(layers: tuple[LayerUnits, ...]) -> dict[str, Any]:
    active, undecided, units = (sum(each) for each in zip(*layers, strict=True))
    return {
        "value": active,
        "units": units,
        "share": active / units,
        "undecided": undecided,
        "variance_above": ACTIVE_VARIANCE,
        "per_layer": [{"layer": layer, **found._asdict()} for layer, found in enumerate(layers)],
    }
