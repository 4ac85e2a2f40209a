"""Batches of images for training and evaluation: webdataset pipelines over the planned order.

    image files:   samples (planned, ours) -> decode -> collate -> augment
    raw pixels:    gathered (planned, ours)                     -> augment

Between the stages up to `decode` go webdataset's samples: dictionaries with `__key__`, `__url__` and the members by
extension, and from us `__position__`, `__epoch__`, `__id__` and `__weight__`. From `collate` on it is one dictionary a
batch. A stage that is put between may change pixels; it must not change which samples come, or how many.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset as wds
from jaxtyping import Float32, Int64, Shaped
from numpy import ndarray
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from attvae.data.augment import Augment, binarise, for_evaluation
from attvae.data.config import DataConfig, OnDamage
from attvae.data.decode import Sample, decode, pixel_type
from attvae.data.manifest import Manifest, Split
from attvae.data.plan import Plan, eval_positions, train_positions
from attvae.data.raw import RawImages
from attvae.data.shard import DamagedError
from attvae.data.source import open_source
from attvae.data.tar import OpenShards
from attvae.seeding import Purpose
from attvae.spec import DataSpec


class Batch(NamedTuple):
    """Images, contiguous, and who they are.

    `ids` are indices in the split's shard order. `positions` are places in the global training stream; in
    evaluation, where every sample has one place, they are the ids. `weights` are 1, or 0 for what is to count nowhere:
    padding, and damaged samples that the configuration says to skip; such a row repeats another image of the batch.
    `damaged` says what is wrong with those.
    """

    x: Shaped[Tensor, "b c h w"]
    ids: Int64[Tensor, "b"]
    positions: Int64[Tensor, "b"]
    weights: Float32[Tensor, "b"]
    damaged: tuple[str, ...]


def open_manifest(config: DataConfig) -> Manifest:
    """The manifest of the data that a run reads; its spec is that of the images as they are delivered.

    Raises:
        ValueError: the folder holds no prepared data, or others than `dataset` names.
    """
    manifest = Manifest.read(open_source(config.path, config.cache.expanduser(), config.cache_gb, config.retry_s))
    if config.dataset not in (None, held := f"{manifest.name} {manifest.version}"):
        raise ValueError(
            f"{config.path} holds the data set {held!r} ({manifest.source}), but data.dataset={config.dataset!r}: "
            "figures on the two are not comparable; prepare the one that is named, or state data.dataset anew"
        )
    if config.size is None:
        return manifest
    spec = manifest.spec.model_copy(update={"height": config.size, "width": config.size})
    return manifest.model_copy(update={"spec": spec, "any_size": True})


def train_batches(
    manifest: Manifest, config: DataConfig, seed: int, start: int, micro_batch: int, rank: int, world_size: int
) -> Iterator[Batch]:
    """The training stream of one rank from `start` samples seen, without end.

    Micro-batch k holds the global positions start + (k * world_size + rank) * micro_batch + arange(micro_batch),
    whatever the number of workers.

    Raises:
        DamagedError: while iterating, a shard or sample is missing, damaged, or not what the manifest says.
    """
    pipeline = train_pipeline(manifest, config, seed, start, micro_batch, rank, world_size)
    return run(pipeline, config.workers)


def train_pipeline(
    manifest: Manifest, config: DataConfig, seed: int, start: int, micro_batch: int, rank: int, world_size: int
) -> wds.DataPipeline:
    """The stages of `train_batches`, for those who put one of their own between them; `run` takes the result."""
    plan = Plan([shard.samples for shard in manifest.shards("train")], config.window, seed)
    deal = partial(train_positions, start, micro_batch, rank, world_size)
    augment = Augment(config.flip, config.crop_pad, seed)
    stage = partial(_augment_train, augment=augment, spec=manifest.spec, seed=seed)
    return _pipeline(manifest, "train", config, plan, deal, None, stage, micro_batch)


def eval_batches(
    manifest: Manifest,
    config: DataConfig,
    split: Split,
    seed: int,
    draw: int,
    batch_size: int,
    rank: int,
    world_size: int,
) -> Iterator[Batch]:
    """Every sample of a split exactly once over all ranks, unchanged, in a fixed order.

    All ranks have the same number of batches of the same sizes; what is missing at the end is padded with weight 0.

    Args:
        draw: which of the binarisations of binary data.

    Raises:
        DamagedError: while iterating, a shard or sample is missing, damaged, or not what the manifest says.
    """
    plan = Plan([shard.samples for shard in manifest.shards(split)], config.window, None)
    deal = partial(eval_positions, plan.samples, batch_size, rank, world_size)
    stage = partial(_augment_eval, spec=manifest.spec, seed=seed, draw=draw)
    return run(_pipeline(manifest, split, config, plan, deal, plan.samples, stage, batch_size), config.workers)


def run(pipeline: wds.DataPipeline, workers: int) -> Iterator[Batch]:
    """The batches of a pipeline, made in this process or in `workers` others."""
    batches: Any = wds.DataPipeline(*pipeline.pipeline, _carry_errors)
    if workers:
        batches = DataLoader(
            batches,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            worker_init_fn=partial(_start_worker, os.getpid()),
            multiprocessing_context="fork",
        )
    for batch in batches:
        if isinstance(batch, ValueError | OSError):
            raise batch
        # Arrays travel from a worker for less than tensors: only the images are worth shared memory.
        ids, positions, weights = (torch.from_numpy(batch[name]) for name in ("ids", "positions", "weights"))
        yield Batch(batch["x"], ids, positions, weights, batch["damaged"])


Deal = Callable[[int, int], Iterator[Int64[ndarray, "b"]]]
"""(worker, workers) -> the positions of each of that worker's batches."""

Collated = dict[str, Any]
"""A batch: `pixels` [B, H, W, C] (from `augment` on `x` [B, C, H, W]), `ids`, `epochs`, `positions`, `weights`, and
`damaged`, the messages."""


class Places(NamedTuple):
    """Where the samples of a batch are."""

    positions: Int64[ndarray, "b"]
    epochs: Int64[ndarray, "b"]
    ids: Int64[ndarray, "b"]
    shards: Int64[ndarray, "b"]
    indices: Int64[ndarray, "b"]
    weights: Float32[ndarray, "b"]


def _pipeline(
    manifest: Manifest,
    split: Split,
    config: DataConfig,
    plan: Plan,
    deal: Deal,
    end: int | None,
    augment: Callable[[Collated], Collated],
    batch_size: int,
) -> wds.DataPipeline:
    planned = partial(_planned, manifest, split, config.window, plan, deal, end)
    if manifest.format == "raw" and not manifest.any_size:
        source = [partial(_gathered, planned, manifest.spec, config.on_damage)]
    else:
        source = [
            partial(_samples, planned, config.on_damage),
            wds.map(partial(_decode, spec=manifest.spec, scale=manifest.any_size, on_damage=config.on_damage)),
            partial(_collate, size=batch_size),
        ]
    return wds.DataPipeline(*source, wds.map(augment), wds.map(_to_tensor))


Planned = Callable[[], Iterator[tuple[OpenShards, Places]]]


def _planned(
    manifest: Manifest, split: Split, window: int, plan: Plan, deal: Deal, end: int | None
) -> Iterator[tuple[OpenShards, Places]]:
    """The places of this worker's batches, in their order; shards are announced a window before they are read.

    Args:
        end: positions from here on are padding.
    """
    info = get_worker_info()
    worker, workers = (info.id, info.num_workers) if info else (0, 1)
    shards = manifest.shards(split)
    # The shards that two windows touch, since a batch may lie on the border of two.
    kept = 4 + 2 * window * len(shards) // plan.samples
    opened = OpenShards(
        lambda number: manifest.storage.open(shards[number]),
        [(manifest.address(shard), shard.samples) for shard in shards],
        kept,
    )
    announced = -1
    for positions in deal(worker, workers):
        here = plan.window_of(int(positions[0]))
        if here != announced and worker == 0:
            ahead = [here + 1] if announced >= 0 else [here, here + 1]
            announced = here
            manifest.storage.prefetch([shards[i] for w in ahead for i in plan.window_shards(w).tolist()])
        weights = np.ones(len(positions), np.float32)
        if end is not None:
            weights[positions >= end] = 0
            positions = positions.clip(max=end - 1)
        epochs, ids = plan.order(positions)
        yield opened, Places(positions, epochs, ids, *plan.locate(ids), weights)


def _gathered(planned: Planned, spec: DataSpec, on_damage: OnDamage) -> Iterator[Collated]:
    """The first stage for raw pixels: whole batches from the memory maps."""
    images = None
    for shards, places in planned():
        images = images or RawImages(shards, spec)
        pixels, damaged = images.gather(places.shards, places.indices)
        if damaged and on_damage == "raise":
            raise damaged[min(damaged)]
        places.weights[list(damaged)] = 0
        messages = dict.fromkeys(str(error) for error in damaged.values())
        yield _collated(pixels, places.positions, places.epochs, places.ids, places.weights, tuple(messages))


def _samples(planned: Planned, on_damage: OnDamage) -> Iterator[Sample]:
    """The first stage for image files: the samples of this worker's batches, in their order."""
    for shards, places in planned():
        for position, epoch, sample_id, shard, index, weight in zip(*(c.tolist() for c in places), strict=True):
            try:
                sample = shards[shard].read(index)
            except DamagedError as error:
                if on_damage == "raise":
                    raise
                sample = {"__key__": str(sample_id), "__url__": shards.name(shard), "__damage__": str(error)}
            sample.update(__position__=position, __epoch__=epoch, __id__=sample_id, __weight__=weight)
            yield sample


def _decode(sample: Sample, spec: DataSpec, scale: bool, on_damage: OnDamage) -> Sample:
    if "__damage__" not in sample:
        try:
            return decode(sample, spec, scale=scale)
        except DamagedError as error:
            if on_damage == "raise":
                raise
            sample["__damage__"] = str(error)
    sample["pixels"] = np.zeros((spec.height, spec.width, spec.channels), pixel_type(spec))
    sample["__weight__"] = 0.0
    return sample


def _collate(samples: Iterator[Sample], size: int) -> Iterator[Collated]:
    while chunk := list(islice(samples, size)):
        positions, epochs, ids = (np.array([s[f"__{name}__"] for s in chunk]) for name in ("position", "epoch", "id"))
        weights = np.array([s["__weight__"] for s in chunk], np.float32)
        messages = dict.fromkeys(s["__damage__"] for s in chunk if "__damage__" in s)
        pixels = np.stack([s["pixels"] for s in chunk])
        yield _collated(pixels, positions, epochs, ids, weights, tuple(messages))


def _collated(
    pixels: Shaped[ndarray, "b h w c"],
    positions: Int64[ndarray, "b"],
    epochs: Int64[ndarray, "b"],
    ids: Int64[ndarray, "b"],
    weights: Float32[ndarray, "b"],
    damaged: tuple[str, ...],
) -> Collated:
    if damaged and weights.any():  # so that statistics over the batch see images, nothing black
        pixels[weights == 0] = pixels[weights.argmax()]
    return {
        "pixels": pixels,
        "positions": positions,
        "epochs": epochs,
        "ids": ids,
        "weights": weights,
        "damaged": damaged,
    }


def _augment_train(batch: Collated, augment: Augment, spec: DataSpec, seed: int) -> Collated:
    x = augment(batch.pop("pixels"), batch["epochs"], batch["ids"])
    if spec.binary:
        x = binarise(x, spec.max_value, seed, Purpose.BINARISE, batch["epochs"], batch["ids"])
    return batch | {"x": x}


def _augment_eval(batch: Collated, spec: DataSpec, seed: int, draw: int) -> Collated:
    return batch | {"x": for_evaluation(batch.pop("pixels"), spec, seed, batch["ids"], draw)}


def _to_tensor(batch: Collated) -> Collated:
    return batch | {"x": torch.from_numpy(batch["x"])}


def _as_it_is(batch: Any) -> Any:
    return batch


def _carry_errors(batches: Iterator[Collated]) -> Iterator[Collated | ValueError | OSError]:
    """Hands an error over as a value: raised inside a worker, torch would bury its message under a traceback."""
    try:
        yield from batches
    except (ValueError, OSError) as error:
        yield error


def _start_worker(trainer: int, worker: int) -> None:
    """A worker leaves Ctrl-C to the trainer and ends when the thread that took the first batch does, however it ends.

    Other signals are the trainer's, too: who ends a whole job or its process group means the run, which saves first.
    torch itself gives a worker one thread.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # the trainer listens
        signal.set_wakeup_fd(-1)
        passed_on = {signal.SIGTERM, signal.SIGUSR1}
        signal.pthread_sigmask(signal.SIG_BLOCK, passed_on)
        threading.Thread(target=_pass_on, args=(trainer, passed_on), daemon=True).start()
    if sys.platform == "linux":  # elsewhere torch's own watch on the parent ends the worker after some seconds
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != trainer:  # it had ended before the line above
            os._exit(1)


def _pass_on(trainer: int, signals: set[signal.Signals]) -> None:
    while True:
        received = signal.sigwaitinfo(signals)
        if received.si_pid == trainer:  # torch ends its workers so
            os._exit(0)
        os.kill(trainer, received.si_signo)
