"""Ranks as threads of this process, for what asks of them no more than sums."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

from torch import Tensor

SumOverRanks = Callable[[Tensor], Tensor]


def on_ranks(functions: list[Callable[[SumOverRanks], Any]]) -> list[Any]:
    """What each function returns, given a sum over all of them."""
    barrier, parts = Barrier(len(functions), timeout=60), [Tensor()] * len(functions)

    def summing(rank: int) -> SumOverRanks:
        def total(own: Tensor) -> Tensor:
            parts[rank] = own
            barrier.wait()
            found = sum(parts[1:], parts[0].clone())
            barrier.wait()
            return found

        return total

    with ThreadPoolExecutor(len(functions)) as pool:
        started = [pool.submit(function, summing(rank)) for rank, function in enumerate(functions)]
        return [each.result() for each in started]
