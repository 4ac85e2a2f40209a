"""The order of the samples, as pure functions of (seed, epoch): nothing here reads a file or keeps a state.

Training is one infinite stream. Global position p lies in epoch p // N at index p % N of N samples; a sample's id is
its index in the split's shard order. An epoch permutes the shards, then the samples within windows of the permuted
sequence: the shards of a window are read together and, but for those on its borders, in no other. Ranks and workers
take positions from this stream, so that their number changes nothing, and the number of samples seen is all there is to
resume from.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from attvae.seeding import Purpose, generator


class ShardOrder(NamedTuple):
    """One epoch's sequence of shards, before the windows."""

    shards: Int64[ndarray, "s"]
    ends: Int64[ndarray, "s"]
    """Position in the epoch at which each of `shards` is over."""


class Plan:
    """The samples of a split and their order in every epoch.

    A window is permuted when a position in it is asked for: 100 million samples cost what their shards cost.

    Args:
        shard_samples: the number of samples of each shard.
        window: samples that are shuffled together.
        seed: of the run; None leaves every epoch in the order of the shards, for evaluation.
    """

    def __init__(self, shard_samples: Sequence[int], window: int, seed: int | None) -> None:
        self._sizes = np.asarray(shard_samples, dtype=np.int64)
        self._ends = np.cumsum(self._sizes)
        self.samples = int(self._ends[-1])
        self._window = window
        self._windows = -(-self.samples // window)  # of an epoch
        self._seed = seed
        # Positions ascend, so a batch meets at most a few windows and the border of two epochs.
        self._shard_order = lru_cache(maxsize=2)(self._permute_shards)
        self._window_order = lru_cache(maxsize=4)(self._permute_window)

    def locate(self, ids: Int64[ndarray, "b"]) -> tuple[Int64[ndarray, "b"], Int64[ndarray, "b"]]:
        """(shard, index in the shard) of sample ids."""
        shards = np.searchsorted(self._ends, ids, side="right")
        return shards, ids - (self._ends - self._sizes)[shards]

    def order(self, positions: Int64[ndarray, "b"]) -> tuple[Int64[ndarray, "b"], Int64[ndarray, "b"]]:
        """(epoch, sample id) at global positions of the training stream."""
        epochs, indices = np.divmod(positions, self.samples)
        if self._seed is None:
            return epochs, indices
        windows, offsets = np.divmod(indices, self._window)
        ids = np.empty_like(positions)
        for epoch, window in set(zip(epochs.tolist(), windows.tolist(), strict=True)):
            here = (epochs == epoch) & (windows == window)
            ids[here] = self._window_order(epoch, window)[offsets[here]]
        return epochs, ids

    def window_of(self, position: int) -> int:
        """The number of the window, counted from the beginning of the stream, that a global position lies in."""
        epoch, index = divmod(position, self.samples)
        return epoch * self._windows + index // self._window

    def window_shards(self, window: int) -> Int64[ndarray, "w"]:
        """The shards that a window, counted like this, reads."""
        epoch, window = divmod(window, self._windows)
        order = self._shard_order(epoch)
        first, last = window * self._window, min((window + 1) * self._window, self.samples) - 1
        from_place, to_place = np.searchsorted(order.ends, [first, last], side="right")
        return order.shards[from_place : to_place + 1]

    def _permute_shards(self, epoch: int) -> ShardOrder:
        if self._seed is None:
            return ShardOrder(np.arange(len(self._sizes)), self._ends)
        shards = _permutation(len(self._sizes), self._seed, epoch, 0)
        return ShardOrder(shards, np.cumsum(self._sizes[shards]))

    def _permute_window(self, epoch: int, window: int) -> Int64[ndarray, "w"]:
        """The sample ids of a window of an epoch, in the order in which they are seen."""
        assert self._seed is not None
        order = self._shard_order(epoch)
        first = window * self._window
        length = min(self._window, self.samples - first)
        indices = first + _permutation(length, self._seed, epoch, 1 + window)
        places = np.searchsorted(order.ends, indices, side="right")
        # An index that lies k before the end of its shard here lies k before the shard's end in the ids.
        return self._ends[order.shards[places]] - (order.ends[places] - indices)


def _permutation(length: int, seed: int, epoch: int, part: int) -> Int64[ndarray, "n"]:
    """Sorting the raw Philox stream: unlike `Generator.permutation`, numpy promises never to change it."""
    return np.argsort(generator(seed, Purpose.ORDER, epoch, part).bit_generator.random_raw(length), kind="stable")


def train_positions(
    start: int, micro_batch: int, rank: int, world_size: int, worker: int, workers: int
) -> Iterator[Int64[ndarray, "b"]]:
    """The global positions of the micro-batches that one worker of one rank makes, without end."""
    for k in count(worker, workers):
        first = start + (k * world_size + rank) * micro_batch
        yield np.arange(first, first + micro_batch)


def eval_positions(
    samples: int, batch_size: int, rank: int, world_size: int, worker: int, workers: int
) -> Iterator[Int64[ndarray, "b"]]:
    """The positions of the batches that one worker of one rank makes: over all of them, each sample exactly once.

    Ranks have batches of equal number and sizes, as collective steps need; positions from `samples` on are padding, at
    most one a rank.
    """
    positions = np.arange(-(-samples // world_size)) * world_size + rank
    for first in range(worker * batch_size, len(positions), workers * batch_size):
        yield positions[first : first + batch_size]
