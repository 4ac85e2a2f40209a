"""Figures as text, for pages and terminals alike."""

import math
from datetime import timedelta

MISSING = "–"


def figure(value: float | None) -> str:
    """Four decimals, or four digits of what is smaller than one; whole numbers as such."""
    match value:
        case None:
            return MISSING
        case _ if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "∞" if value > 0 else "-∞"
        case _ if value == round(value) and abs(value) < 1e15:
            return f"{value:,.0f}"
        case _:
            return f"{value:,.4f}" if abs(value) >= 0.01 else f"{value:.4g}"


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
