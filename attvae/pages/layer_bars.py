"""The KL of each latent layer as bars, runs of different depth on the same scale."""

import re
from collections.abc import Sequence
from html import escape
from math import isfinite
from typing import NamedTuple

from attvae.pages.axis import from_zero
from attvae.pages.curves import COLOURS
from attvae.pages.figures import figure
from attvae.tracking.run import Run

_GROUPS = {"val_kl": "validation images, EMA weights", "kl": "training images"}
_LAYER = re.compile(r"layer_(\d+)")

_WIDTH, _HEIGHT = 420, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 6, 10, 36


class LayerKl(NamedTuple):
    """Nats of each layer of each run at one step; NaN where a run has none."""

    of: str
    samples_seen: int
    nats: list[list[float]]


def layer_kl(runs: Sequence[Run]) -> LayerKl | None:
    """At the newest step that all runs have; of the validation images, else of the training. None if there is none."""
    for group, of in _GROUPS.items():
        names = [
            sorted(
                (metric for metric in run.metrics if metric.startswith(f"{group}/") and _LAYER.search(metric)),
                key=lambda metric: int(_LAYER.search(metric)[1]),  # type: ignore[index]
            )
            for run in runs
        ]
        values = [
            [{point.samples_seen: point.value for point in run.series(metric)} for metric in layers]
            for run, layers in zip(runs, names, strict=True)
        ]
        if not all(values):
            continue
        if common := set.intersection(*(set(layer) for layers in values for layer in layers)):
            at = max(common)
            return LayerKl(of, at, [[layer[at] for layer in layers] for layers in values])
    return None


def bars(run: str, index: int, nats: Sequence[float], layers: int, highest: float) -> str:
    """An SVG element with `data-kl-run`, and in it one bar for each layer with `data-layer`.

    Args:
        layers: places on the horizontal axis, those of the deepest run.
        highest: the end of the vertical axis, in nats.
    """
    y = from_zero(highest)
    height = _HEIGHT - _TOP - _BOTTOM
    step = (_WIDTH - _LEFT - _RIGHT) / layers
    parts = []
    for number, label in y.ticks:
        down = _TOP + (1 - y.place(number)) * height
        parts.append(f'<path class="grid" d="M{_LEFT} {down:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{down + 4:.1f}" text-anchor="end">{label}</text>')
    for layer, value in enumerate(nats):
        tall = max(y.place(value), 0.0) * height if isfinite(value) else 0.0
        parts.append(
            f'<rect data-layer="{layer}" class="c{index % COLOURS}" x="{_LEFT + (layer + 0.1) * step:.1f}" '
            f'y="{_TOP + height - tall:.1f}" width="{0.8 * step:.1f}" height="{tall:.1f}">'
            f"<title>layer {layer}: {figure(value)} nats</title></rect>"
        )
    for layer in range(0, layers, max(1, layers // 8)):
        across = _LEFT + (layer + 0.5) * step
        parts.append(f'<text x="{across:.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{layer}</text>')
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:g}" y="{_HEIGHT - 4}" text-anchor="middle">layer, from the top</text>'
    )
    described = f"KL of {run} by layer, in nats: {', '.join(figure(value) for value in nats)}"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(described)}" '
        f'data-kl-run="{escape(run)}">{"".join(parts)}</svg>'
    )
