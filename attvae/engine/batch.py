"""The one place where a global batch becomes micro-batches. Pure."""

from typing import NamedTuple


class BatchPlan(NamedTuple):
    """global batch = micro_batch * accumulation * ranks"""

    micro_batch: int
    accumulation: int


def divide(global_batch: int, ranks: int, micro_batch: int | None) -> BatchPlan:
    """Derives the micro-batch and the accumulation count.

    Args:
        micro_batch: images that fit into a rank's memory at once; where a rank has fewer, it takes them all.

    Raises:
        ValueError: the ranks, or the ranks times the micro-batch, do not divide the global batch.
    """
    if global_batch % ranks:
        raise ValueError(
            f"train.global_batch={global_batch} is not divisible by {ranks} ranks: "
            f"use a multiple of {ranks}, such as {_nearest_multiple(global_batch, ranks)}"
        )
    per_rank = global_batch // ranks
    if micro_batch is None or per_rank < micro_batch:
        return BatchPlan(per_rank, 1)
    if per_rank % micro_batch:
        raise ValueError(
            f"train.global_batch={global_batch} is not a multiple of engine.micro_batch={micro_batch} times "
            f"{ranks} ranks: choose an engine.micro_batch that divides {per_rank}, or null"
        )
    return BatchPlan(micro_batch, per_rank // micro_batch)


def _nearest_multiple(value: int, factor: int) -> int:
    return max(factor, round(value / factor) * factor)
