"""The trials' curves as SVG: the metric by samples seen."""

from collections.abc import Mapping, Sequence
from html import escape

from attvae.pages.axis import around, from_zero
from attvae.search.lines import Line, drawable

Curve = Sequence[tuple[int, float]]
"""(samples seen, value)"""

_WIDTH, _HEIGHT = 420, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 12, 42


def trial_curves(curves: Mapping[str, Curve], lines: Sequence[Line], metric: str) -> str:
    """An SVG element with a polyline with `data-trial` for each trial that has a figure, a dot at its last one.

    Args:
        curves: by trial id.
    """
    shown = {key: [point for point in curve if drawable(point[1])] for key, curve in curves.items()}
    x = from_zero(max((samples for curve in shown.values() for samples, _ in curve), default=1))
    y = around(value for curve in shown.values() for _, value in curve)

    def across(samples: float) -> float:
        return _LEFT + x.place(samples) * (_WIDTH - _LEFT - _RIGHT)

    def down(value: float) -> float:
        return _HEIGHT - _BOTTOM - y.place(value) * (_HEIGHT - _BOTTOM - _TOP)

    parts = []
    for number, label in y.ticks:
        parts.append(f'<path class="grid" d="M{_LEFT} {down(number):.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{down(number) + 4:.1f}" text-anchor="end">{label}</text>')
    for number, label in x.ticks:
        parts.append(f'<path class="grid" d="M{across(number):.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{across(number):.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{label}</text>')
    note = "samples seen · logarithmic" if y.logarithmic else "samples seen"
    parts.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:g}" y="{_HEIGHT - 5}" text-anchor="middle">{note}</text>')
    for line in lines:
        if curve := shown.get(line.trial.id):
            points = [(across(samples), down(value)) for samples, value in curve]
            text = " ".join(f"{a:.1f},{d:.1f}" for a, d in points)
            a, d = points[-1]
            parts.append(f'<polyline {line.attributes} points="{text}">{line.title}</polyline>')
            parts.append(f'<circle {line.attributes} cx="{a:.1f}" cy="{d:.1f}" r="3">{line.title}</circle>')
    described = f"{metric} of {sum(map(bool, shown.values()))} trials by samples seen"
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(described)}">{"".join(parts)}</svg>'
