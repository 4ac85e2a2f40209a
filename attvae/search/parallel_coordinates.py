"""Parallel coordinates as SVG: an axis for each key of the space, the metric last, a line for each trial."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

from attvae.pages.axis import Axis, around
from attvae.search.config import Dimension
from attvae.search.importance import place
from attvae.search.lines import Line, drawable
from attvae.search.space import format_value

_STEP, _LEFT, _RIGHT = 132, 76, 76
_TOP, _BOTTOM, _ABSENT = 48, 268, 296  # of the axes; and where a line passes whose trial has no value there
_NAME_LENGTH, _LABEL_LENGTH = 20, 13
_MOST_LABELS = 12


class _Labels(NamedTuple):
    number: float
    """From 0 at the lower end of the axis to 1."""
    text: str


def parallel_coordinates(space: Mapping[str, Dimension], lines: Sequence[Line], metric: str) -> str:
    """An SVG element with `data-axis` for each key and a polyline with `data-trial` for each trial."""
    y = around(figure for line in lines if drawable(figure := line.trial.figure(metric)))
    width = _LEFT + _STEP * len(space) + _RIGHT
    absent = any(key not in line.trial.config for line in lines for key in space)
    parts = []
    for line in lines:
        points = " ".join(f"{across:.1f},{down:.1f}" for across, down in _points(space, line, metric, y))
        parts.append(f'<polyline {line.attributes} points="{points}">{line.title}</polyline>')
    for column, (key, dimension) in enumerate(space.items()):
        note = " (log)" if dimension.kind == "loguniform" else ""
        parts.append(_axis(column, key, note, _labels_of(dimension), "end" if column == 0 else "start"))
    parts.append(_axis(len(space), metric, " (log)" if y.logarithmic else "", _labels_at(y), "start"))
    if absent:
        parts.append(f'<text x="{_LEFT - 8}" y="{_ABSENT + 4}" text-anchor="end">not set</text>')
    height = _ABSENT + 20 if absent else _BOTTOM + 20
    described = f"{len(lines)} trials: {', '.join(space)}, and {metric}"
    return (
        f'<svg viewBox="0 0 {width} {height}" style="min-width: {width}px" role="img" '
        f'aria-label="{escape(described)}">{"".join(parts)}</svg>'
    )


def _points(space: Mapping[str, Dimension], line: Line, metric: str, y: Axis) -> Iterator[tuple[float, float]]:
    for column, (key, dimension) in enumerate(space.items()):
        value = place(dimension, line.trial.config[key]) if key in line.trial.config else None
        yield _across(column), _ABSENT if value is None else _down(value)
    if drawable(figure := line.trial.figure(metric)):
        yield _across(len(space)), _down(y.place(figure))


def _across(column: int) -> float:
    return _LEFT + _STEP * column


def _down(place: float) -> float:
    """PBT moves values beyond their bounds: they are drawn on them."""
    return _BOTTOM - min(max(place, 0.0), 1.0) * (_BOTTOM - _TOP)


def _axis(column: int, name: str, note: str, labels: Sequence[_Labels], anchor: str) -> str:
    across = _across(column)
    group, _, leaf = name.rpartition("." if "." in name else "/")
    beside = across + (-8 if anchor == "end" else 8)
    texts = [
        f'<text class="label" x="{beside:g}" y="{_down(number) + 4:.1f}" text-anchor="{anchor}">'
        f"{escape(_cut(text, _LABEL_LENGTH))}</text>"
        for number, text in labels
    ]
    return (
        f'<g data-axis="{escape(name)}"><title>{escape(name)}</title>'
        f'<text x="{across}" y="16" text-anchor="middle">{escape(_cut(group, _NAME_LENGTH))}</text>'
        f'<text class="name" x="{across}" y="31" text-anchor="middle">{escape(_cut(leaf, _NAME_LENGTH))}{note}</text>'
        f'<path class="axis" d="M{across} {_TOP}V{_BOTTOM}"/>{"".join(texts)}</g>'
    )


def _labels_of(dimension: Dimension) -> list[_Labels]:
    if dimension.choice is not None and len(dimension.choice) <= _MOST_LABELS:
        return [_Labels(place(dimension, value), format_value(value)) for value in dimension.choice]
    ends = (dimension.choice[0], dimension.choice[-1]) if dimension.choice else dimension.bounds
    return [_Labels(float(end), format_value(value)) for end, value in enumerate(ends)]


def _labels_at(axis: Axis) -> list[_Labels]:
    return [_Labels(axis.place(number), text) for number, text in axis.ticks]


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"…{text[1 - length :]}"
