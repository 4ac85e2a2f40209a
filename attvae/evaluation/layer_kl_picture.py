"""The KL of each latent layer as bars."""

import math
from pathlib import Path

from attvae.evaluation.chart import ALARM, BAR, INK, PALE, Sheet, labelled
from attvae.evaluation.elbo import ACTIVE_NATS, ElboFigures
from attvae.evaluation.image_grid import save_png

_LEFT, _TOP, _RIGHT, _BOTTOM = 80, 44, 708, 332
_DECADES = range(-3, 5)
"""From 0.001 to 10,000 nats at every step of every run: dead layers of digits and busy ones of photographs."""


def layer_kl_picture(figures: ElboFigures, path: Path) -> None:
    """Writes a PNG; the top layer is on the left, the scale is logarithmic, a line marks where a layer is active."""
    kl = figures.kl_nats_per_layer
    sheet = Sheet()
    sheet.text(_RIGHT, 8, f"sum {sum(kl):,.2f} nats", "ra")
    sheet.text(8, 8, "KL of each layer, nats per image", "la")
    for decade in _DECADES:
        y = _height(10.0**decade)
        sheet.box(_LEFT, y, _RIGHT, y + 1, PALE)
        sheet.text(_LEFT - 8, y, f"{10.0**decade:,.{max(0, -decade)}f}", "rm")
    step = (_RIGHT - _LEFT) / len(kl)
    for layer, nats in enumerate(kl):
        x = _LEFT + layer * step
        top, colour = (_height(nats), BAR) if math.isfinite(nats) else (_TOP, ALARM)
        sheet.box(x + 0.1 * step, top, x + 0.9 * step, _BOTTOM, colour)
    active = _height(ACTIVE_NATS)
    for x in range(_LEFT, _RIGHT, 8):
        sheet.box(x, active, x + 4, active + 1, INK)
    for layer in labelled(len(kl), step):
        sheet.text(_LEFT + (layer + 0.5) * step, _BOTTOM + 8, str(layer), "mt")
    sheet.text((_LEFT + _RIGHT) / 2, _BOTTOM + 36, "layer, 0 on top; active above the dashes", "mt")
    save_png(sheet.image, path)


def _height(nats: float) -> float:
    """y of a value; what lies beyond the scale stays at its end."""
    low, high = _DECADES[0], _DECADES[-1]
    decade = math.log10(nats) if nats > 0 else low
    return _BOTTOM - (min(max(decade, low), high) - low) / (high - low) * (_BOTTOM - _TOP)
