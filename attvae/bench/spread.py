"""Median, least and most of repeated measurements."""

from collections.abc import Sequence
from statistics import median


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def as_text(found: dict[str, float], digits: int) -> str:
    """For people."""
    middle, least, most = (f"{found[name]:,.{digits}f}" for name in ("median", "min", "max"))
    return f"{middle} ({least} to {most})"
