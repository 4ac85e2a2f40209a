"""Damaged samples that a run skips: counted and named on all ranks alike, so that the means and the end agree."""

import sys
from collections.abc import Sequence

import torch

from attvae.data.loader import Batch
from attvae.engine.rendezvous import World

NAMED = 20


class Skips:
    """What a run has skipped so far.

    Args:
        limit: the part of an epoch's samples that may be skipped in each.
        epoch: samples of an epoch.
        skipped: before a resume.
    """

    def __init__(self, world: World, limit: float, epoch: int, skipped: int) -> None:
        self._world = world
        self._limit = limit
        self._epoch = epoch
        self._named: dict[str, None] = {}
        self.skipped = skipped

    def valid(self, micros: Sequence[Batch], samples_seen: int) -> int:
        """How many images of a global batch count, from each rank's micro-batches. Collective.

        Args:
            samples_seen: with this global batch.

        Raises:
            ValueError: more than the limit has been skipped; on the first rank, the others end with it.
        """
        news = [message for micro in micros for message in micro.damaged if message not in self._named]
        for message in dict.fromkeys(news):
            self._named[message] = None
            print(f"attvae (rank {self._world.rank}): skipped: {message}", file=sys.stderr, flush=True)
        here = torch.tensor([[micro.weights.sum(), len(micro.weights)] for micro in micros], dtype=torch.float64).sum(0)
        valid, images = (int(count) for count in self._world.sum(here))
        self.skipped += images - valid
        begun = -(-samples_seen // self._epoch)
        if self.skipped > self._limit * self._epoch * begun:  # wherever the damage lies in an epoch
            everywhere = dict.fromkeys(name for names in self._world.gather(list(self._named)) for name in names)
            self._world.from_first(lambda: self._fail(list(everywhere)))
        return valid

    def _fail(self, damage: list[str]) -> None:
        more = f"; and {len(damage) - NAMED} more" if len(damage) > NAMED else ""
        raise ValueError(
            f"{self.skipped} damaged samples were skipped, more than data.skip_limit={self._limit} of an epoch of "
            f"{self._epoch}: {'; '.join(damage[:NAMED])}{more}"
        )
