"""Counting and naming what a run skips, on one rank among others that are made up."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from attvae.data.loader import Batch
from attvae.engine.rendezvous import World
from attvae.skips import Skips


@dataclass(frozen=True)
class AmongOthers(World):
    """A rank of two; the other one adds the same numbers each time, and has the same messages."""

    rank: int = 0
    size: int = 2
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    valid: int = 0
    images: int = 0
    messages: tuple[str, ...] = ()

    def sum(self, x: Tensor) -> Tensor:
        return x + torch.tensor([self.valid, self.images], dtype=x.dtype)

    def gather(self, value: Any) -> list[Any]:
        return [value, list(self.messages)]

    def from_first(self, make: Callable[[], Any]) -> Any:
        return make()


def batch(weights: list[float], *damaged: str) -> Batch:
    ids = torch.arange(len(weights))
    return Batch(torch.zeros(len(weights), 1, 1, 1), ids, ids, torch.tensor(weights), damaged)


def test_what_counts_is_summed_over_micro_batches_and_ranks() -> None:
    skips = Skips(AmongOthers(valid=5, images=6), limit=1, epoch=100, skipped=7)
    assert skips.valid([batch([1, 0, 1], "a"), batch([0, 0, 1], "b", "c")], 12) == 8
    assert skips.skipped == 7 + 4
    assert skips.valid([batch([1, 1, 1]), batch([1, 1, 1])], 24) == 11
    assert skips.skipped == 7 + 5


def test_each_damage_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    skips = Skips(AmongOthers(rank=1), limit=1, epoch=100, skipped=0)
    skips.valid([batch([0, 1], "shard a is missing"), batch([0, 1], "shard a is missing")], 4)
    skips.valid([batch([0, 0], "shard a is missing", "shard b is missing")], 6)
    said = capsys.readouterr().err.splitlines()
    assert said == [f"attvae (rank 1): skipped: shard {name} is missing" for name in "ab"]


def test_the_limit_holds_for_each_epoch_that_is_begun() -> None:
    """5 of 100 in each epoch, wherever in it, are allowed; the sixth is not."""
    skips = Skips(AmongOthers(), limit=0.05, epoch=100, skipped=0)
    for epoch in range(3):
        skips.valid([batch([0] * 5)], 100 * epoch + 5)
        skips.valid([batch([1] * 95)], 100 * (epoch + 1))
    with pytest.raises(ValueError, match=r"^16 damaged samples were skipped, more than data\.skip_limit=0\.05 of an "):
        skips.valid([batch([0])], 300)


def test_a_limit_of_nothing_ends_at_the_first_damage_wherever_it_is() -> None:
    skips = Skips(AmongOthers(valid=1, images=2, messages=("shard b is missing",)), limit=0, epoch=100, skipped=0)
    with pytest.raises(ValueError, match=r"^1 damaged samples were skipped, .*: shard b is missing$"):
        skips.valid([batch([1, 1])], 4)


def test_the_message_stays_readable_when_everything_is_damaged() -> None:
    others = tuple(f"shard {number} is missing" for number in range(20, 50))
    skips = Skips(AmongOthers(valid=0, images=30, messages=others), limit=0.1, epoch=100, skipped=0)
    mine = [f"shard {number} is missing" for number in range(25)]
    with pytest.raises(ValueError, match=r"shard 0 is missing; .*; shard 19 is missing; and 30 more$"):
        skips.valid([batch([0] * 25, *mine)], 55)
