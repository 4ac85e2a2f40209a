"""Batches of images for training and evaluation: a webdataset pipeline over the planned order.

source (ours) -> decode -> augment -> batch. Between the stages go webdataset's samples: dictionaries with `__key__`,
`__url__` and the members by extension, and from us `__position__`, `__epoch__` and `__id__`.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
import webdataset as wds
from jaxtyping import Int64, UInt8
from numpy import ndarray
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from attvae.data.augment import binarise, flip
from attvae.data.config import DataConfig, Flip
from attvae.data.decode import Sample, decode
from attvae.data.manifest import Manifest, Split
from attvae.data.plan import Plan, eval_ids, train_positions
from attvae.data.shards import ShardReader
from attvae.seeding import Purpose, generator
from attvae.spec import DataSpec


class Batch(NamedTuple):
    """Images, contiguous, and who they are.

    `ids` are indices in the split's shard order. `positions` are places in the global training stream; in
    evaluation, where every sample has one place, they are the ids.
    """

    x: UInt8[Tensor, "b c h w"]
    ids: Int64[Tensor, "b"]
    positions: Int64[Tensor, "b"]


def train_batches(
    manifest: Manifest, config: DataConfig, seed: int, start: int, micro_batch: int, rank: int, world_size: int
) -> Iterator[Batch]:
    """The training stream of one rank from `start` samples seen, without end.

    Micro-batch k holds the global positions start + (k * world_size + rank) * micro_batch + arange(micro_batch),
    whatever the number of workers.

    Raises:
        ValueError: while iterating, a shard or sample is missing, damaged, or not what the manifest says.
    """
    plan = Plan([shard.samples for shard in manifest.shards("train")], config.window, seed)
    deal = partial(train_positions, start, micro_batch, rank, world_size)
    augment = partial(_augment_train, spec=manifest.spec, axes=config.flip, seed=seed)
    return _batches(manifest, "train", config, plan, deal, plan.order, augment, micro_batch)


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
    """Every sample of a split exactly once over all ranks, unchanged, in a fixed order; the last batch may be smaller.

    Args:
        draw: which of the binarisations of binary data.

    Raises:
        ValueError: while iterating, a shard or sample is missing, damaged, or not what the manifest says.
    """
    plan = Plan([shard.samples for shard in manifest.shards(split)], config.window, seed)
    deal = partial(eval_ids, plan.samples, batch_size, rank, world_size)
    augment = partial(_augment_eval, spec=manifest.spec, seed=seed, draw=draw)
    return _batches(manifest, split, config, plan, deal, _shard_order, augment, batch_size)


Deal = Callable[[int, int], Iterator[Int64[ndarray, "b"]]]
"""(worker, workers) -> the positions of each of that worker's batches."""

Order = Callable[[Int64[ndarray, "b"]], tuple[Int64[ndarray, "b"], Int64[ndarray, "b"]]]
"""positions -> (epochs, sample ids)"""


def _batches(
    manifest: Manifest,
    split: Split,
    config: DataConfig,
    plan: Plan,
    deal: Deal,
    order: Order,
    augment: Callable[[Sample], Sample],
    batch_size: int,
) -> Iterator[Batch]:
    shards = [(manifest.path(shard), shard.samples) for shard in manifest.shards(split)]
    # The shards that two windows touch, since a batch may lie on the border of two.
    kept = 4 + 2 * config.window * len(shards) // plan.samples
    pipeline = wds.DataPipeline(
        partial(_source, shards, kept, plan, deal, order),
        wds.map(partial(decode, spec=manifest.spec)),
        wds.map(augment),
        partial(_batch, size=batch_size, spec=manifest.spec),
        _carry_errors,
    )
    if config.workers:
        pipeline = DataLoader(
            pipeline,
            batch_size=None,
            num_workers=config.workers,
            worker_init_fn=partial(_start_worker, os.getpid()),
            multiprocessing_context="fork",
        )
    for batch in pipeline:
        if isinstance(batch, ValueError | OSError):
            raise batch
        yield batch


def _source(shards: list, kept: int, plan: Plan, deal: Deal, order: Order) -> Iterator[Sample]:
    """The first stage: reads the samples of this worker's batches, in their order."""
    info = get_worker_info()
    worker, workers = (info.id, info.num_workers) if info else (0, 1)
    reader = ShardReader(shards, kept)
    try:
        for positions in deal(worker, workers):
            epochs, ids = order(positions)
            places = plan.locate(ids)
            columns = (column.tolist() for column in (positions, epochs, ids, *places))
            for position, epoch, sample_id, shard, index in zip(*columns, strict=True):
                sample = reader.read(shard, index)
                sample.update(__position__=position, __epoch__=epoch, __id__=sample_id)
                yield sample
    finally:
        reader.close()


def _shard_order(ids: Int64[ndarray, "b"]) -> tuple[Int64[ndarray, "b"], Int64[ndarray, "b"]]:
    """Evaluation reads the shards as they lie, once."""
    return np.zeros_like(ids), ids


def _augment_train(sample: Sample, spec: DataSpec, axes: Flip, seed: int) -> Sample:
    place = (sample["__epoch__"], sample["__id__"])
    if axes != "none":
        sample["pixels"] = flip(sample["pixels"], axes, generator(seed, Purpose.AUGMENT, *place))
    if spec.binary:
        sample["pixels"] = binarise(sample["pixels"], spec.max_value, generator(seed, Purpose.BINARISE, *place))
    return sample


def _augment_eval(sample: Sample, spec: DataSpec, seed: int, draw: int) -> Sample:
    if spec.binary:
        noise = generator(seed, Purpose.EVALUATE_BINARISE, sample["__id__"], draw)
        sample["pixels"] = binarise(sample["pixels"], spec.max_value, noise)
    return sample


def _batch(samples: Iterator[Sample], size: int, spec: DataSpec) -> Iterator[Batch]:
    while chunk := list(islice(samples, size)):
        x = np.empty((len(chunk), *spec.shape), dtype=np.uint8)
        for row, sample in zip(x, chunk, strict=True):
            row[:] = sample["pixels"].transpose(2, 0, 1)
        ids = torch.tensor([sample["__id__"] for sample in chunk])
        positions = torch.tensor([sample["__position__"] for sample in chunk])
        yield Batch(torch.from_numpy(x), ids, positions)


def _carry_errors(batches: Iterator[Batch]) -> Iterator[Batch | ValueError | OSError]:
    """Hands an error over as a value: raised inside a worker, torch would bury its message under a traceback."""
    try:
        yield from batches
    except (ValueError, OSError) as error:
        yield error


def _start_worker(trainer: int, worker: int) -> None:
    """A worker leaves Ctrl-C to the trainer and ends when the thread that took the first batch does, however it ends.

    torch itself gives a worker one thread.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere torch's own watch on the parent ends the worker after some seconds
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != trainer:  # it had ended before the line above
            os._exit(1)
