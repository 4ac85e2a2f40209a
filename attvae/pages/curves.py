"""The curves of a metric, one for each run, as SVG."""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby, pairwise
from typing import Literal, NamedTuple

from attvae.pages.axis import Axis, around, from_zero
from attvae.pages.figures import duration, figure
from attvae.tracking.run import Point, Run

By = Literal["samples", "time"]

COLOURS = 6
DASHES = ("none", "7 3", "2 2.5", "9 3 2 3", "12 4")
"""Run i has colour i mod 6 and dash i mod 5: thirty runs look different, neighbours also without colour."""

_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 16, 10, 40
_MARK = 3  # radius of the mark of a value
_MOST_POINTS = 300
_EARLY = 0.1
"""What is in this part of a run may leave the frame: it would press all that follows into a line."""
_INFINITE = 1e100  # what is larger is left out as if it were
_FEW_POINTS = 40
"""So many of a run are marked one by one, and tell their numbers."""


class Extent(NamedTuple):
    """How far the runs go: all charts of a page share it."""

    samples_seen: int
    wall_s: float


def extent_of(runs: Sequence[Run]) -> Extent:
    return Extent(max(run.samples_seen for run in runs), max(run.wall_s for run in runs))


def style_of(index: int) -> str:
    """Attributes of the line of the run of this index."""
    return f'class="c{index % COLOURS}" stroke-dasharray="{DASHES[index % len(DASHES)]}"'


def frame() -> str:
    """The part of a chart that curves stay in, which a page has once."""
    width, height = _WIDTH - _LEFT - _RIGHT + 2 * _MARK, _HEIGHT - _TOP - _BOTTOM + 2 * _MARK
    return (
        '<svg class="shared" width="0" height="0" aria-hidden="true"><clipPath id="frame">'
        f'<rect x="{_LEFT - _MARK}" y="{_TOP - _MARK}" width="{width}" height="{height}"/></clipPath></svg>'
    )


def curves(metric: str, runs: Sequence[Run], by: By, extent: Extent) -> str:
    """An SVG element: `data-metric`, `data-by`, and a polyline with `data-run` for each unbroken stretch of a run.

    Values that are not finite break a curve; a long one is thinned to its extremes. The vertical axis holds what comes
    after the first tenth of each run.
    """
    series = [run.series(metric) for run in runs]
    drawn = [point for points in series for point in points if _drawable(point)]
    settled = [
        point
        for run, points in zip(runs, series, strict=True)
        for point in points
        if _drawable(point) and point.samples_seen >= _EARLY * run.samples_seen
    ]
    y = around(point.value for point in settled or drawn)
    x, label = _x_axis(by, extent)
    lines = [
        line
        for index, (run, points) in enumerate(zip(runs, series, strict=True))
        for line in _lines(index, run.name, points, x, y, by)
    ]
    left_out = sum(not _drawable(point) for points in series for point in points)
    says = [f"{run.name}: {figure(points[-1].value)}" for run, points in zip(runs, series, strict=True) if points]
    described = f"{metric} by {label}, last values: {', '.join(says)}"
    outside = any(not y.low <= point.value <= y.high for point in drawn)
    notes = [label, "logarithmic" * y.logarithmic, "early values outside" * outside]
    notes.append(f"{left_out} not finite, left out" * (left_out > 0))
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(described)}" '
        f'data-metric="{escape(metric)}" data-by="{by}">'
        f"{''.join(_grid(x, y))}"
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:g}" y="{_HEIGHT - 4}" text-anchor="middle">'
        f"{' · '.join(filter(None, notes))}</text>"
        f'<g clip-path="url(#frame)">{"".join(lines)}</g></svg>'
    )


def _x_axis(by: By, extent: Extent) -> tuple[Axis, str]:
    if by == "samples":
        return from_zero(extent.samples_seen), "samples seen"
    unit, label = next(
        (unit, label)
        for unit, label in ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
        if extent.wall_s > 3 * unit or unit == 1
    )
    return from_zero(extent.wall_s, unit), label


def _across(axis: Axis, number: float) -> float:
    return _LEFT + axis.place(number) * (_WIDTH - _LEFT - _RIGHT)


def _down(axis: Axis, number: float) -> float:
    return _HEIGHT - _BOTTOM - axis.place(number) * (_HEIGHT - _BOTTOM - _TOP)


def _grid(x: Axis, y: Axis) -> Iterator[str]:
    for number, label in y.ticks:
        at = _down(y, number)
        yield f'<path class="grid" d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}"/>'
        yield f'<text x="{_LEFT - 5}" y="{at + 4:.1f}" text-anchor="end">{label}</text>'
    for number, label in x.ticks:
        at = _across(x, number)
        yield f'<path class="grid" d="M{at:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>'
        yield f'<text x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{label}</text>'


def _lines(index: int, name: str, points: Sequence[Point], x: Axis, y: Axis, by: By) -> Iterator[str]:
    style, marked = style_of(index), len(points) <= _FEW_POINTS
    for finite, stretch in groupby(points, key=_drawable):
        if not finite:
            continue
        kept = _thinned(list(stretch))
        places = [(_across(x, _along(point, by)), _down(y, point.value)) for point in kept]
        line = " ".join(f"{across:.1f},{down:.1f}" for across, down in places)
        yield f'<polyline data-run="{escape(name)}" {style} points="{line}"/>'
        if marked or len(kept) == 1:
            for point, (across, down) in zip(kept, places, strict=True):
                said = f"{name}: {figure(point.value)} at {point.samples_seen:,} samples, {duration(point.wall_s)}"
                yield (
                    f'<circle class="c{index % COLOURS}" cx="{across:.1f}" cy="{down:.1f}" r="{_MARK}">'
                    f"<title>{escape(said)}</title></circle>"
                )


def _drawable(point: Point) -> bool:
    return abs(point.value) < _INFINITE


def _along(point: Point, by: By) -> float:
    return point.samples_seen if by == "samples" else point.wall_s


def _thinned(points: list[Point]) -> list[Point]:
    """At most so many: the first and the last, and between them the least and the largest of each part."""
    if len(points) <= _MOST_POINTS:
        return points
    parts = _MOST_POINTS // 2 - 1
    edges = [1 + (len(points) - 2) * i // parts for i in range(parts + 1)]
    kept = [points[0]]
    for start, stop in pairwise(edges):
        part = points[start:stop]
        kept += sorted({min(part, key=lambda point: point.value), max(part, key=lambda point: point.value)})
    return [*kept, points[-1]]
