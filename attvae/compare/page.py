"""A comparison as one HTML file that needs nothing else: no network, no script."""

import base64
from collections.abc import Iterator, Sequence
from html import escape
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import attvae
from attvae.compare.curves import curves, extent_of, frame, style_of
from attvae.compare.layer_bars import bars, layer_kl
from attvae.compare.tables import Table, all_tables, not_comparable
from attvae.run_folder import write_text
from attvae.tracking.run import Run

_STYLE = Path(__file__).with_name("style.css")

_GROUPS = ("val", "train", "kl", "val_kl", "attention", "perf", "data", "system")
_OPEN = ("val", "train")  # other groups wait until they are asked for
_IN_TABLES = ("test",)  # one value a run makes no curve
_FIRST = ("nelbo_nats", "bits_per_dim", "nll_nats", "kl_nats", "active_layers", "images_per_s")
_PICTURES = ("samples", "reconstructions", "depth_attention", "layer_kl")
_LONG, _VERY_LONG = 24, 120  # characters of a table's cell

_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title} – attvae compare</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


class _Section(NamedTuple):
    name: str
    title: str
    content: str


def write_page(runs: Sequence[Run], out: Path) -> None:
    """Replaces `out`, whole or not at all; creates its folder.

    Raises:
        ValueError: `out` cannot be written.
    """
    text = page(runs)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    except OSError as error:
        raise ValueError(f"cannot write the page {out} ({error.strerror}): choose another with --out") from error


def page(runs: Sequence[Run]) -> str:
    title = escape(", ".join(run.name for run in runs) if len(runs) <= 3 else f"{len(runs)} runs")
    sections = [*map(_table, all_tables(runs)), _curves(runs), *_layers(runs), *_pictures(runs)]
    links = (f'<a href="#{section.name}">{escape(section.title)}</a>' for section in sections)
    body = [
        f"<h1>{title}</h1>",
        *(f'<p class="careful">Careful: {escape(reason)}.</p>' for reason in not_comparable(runs)),
        f"<nav>{' '.join(links)}</nav>",
        *(
            f'<section id="{name}"><h2 id="{name}-title">{escape(heading)}</h2>\n{content}\n</section>'
            for name, heading, content in sections
        ),
        f"<footer>attvae {attvae.__version__}</footer>",
    ]
    return _FRAME.format(title=title, style=_STYLE.read_text(), body="\n".join(body))


def _table(table: Table) -> _Section:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    rows = (f'<tr><th scope="row">{escape(row[0])}</th>{"".join(map(_cell, row[1:]))}</tr>\n' for row in table.rows)
    return _Section(
        table.name,
        table.title,
        f'<div class="wide" role="region" tabindex="0" aria-labelledby="{table.name}-title">'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>\n</table></div>",
    )


def _cell(text: str) -> str:
    if len(text) <= _LONG:
        return f"<td>{escape(text)}</td>"
    if len(text) <= _VERY_LONG:
        return f'<td class="long">{escape(text)}</td>'
    shown, folded = escape(text[:_VERY_LONG]), escape(text[_VERY_LONG:])
    return f'<td class="long"><details><summary>{shown} …</summary>{folded}</details></td>'


def _curves(runs: Sequence[Run]) -> _Section:
    groups: dict[str, list[str]] = {group: [] for group in _GROUPS}
    for metric in sorted({metric for run in runs for metric in run.metrics}, key=_place):
        groups.setdefault(metric.partition("/")[0], []).append(metric)
    extent = extent_of(runs)
    keys = (
        f'<li><svg class="key" viewBox="0 0 40 10" aria-hidden="true"><polyline {style_of(index)} points="1,5 39,5"/>'
        f"</svg>{escape(run.name)}</li>"
        for index, run in enumerate(runs)
    )
    parts = [
        '<div class="bar"><fieldset><legend>by</legend>'
        '<label><input type="radio" name="by" id="by-samples" checked> samples seen</label> '
        '<label><input type="radio" name="by" id="by-time"> time</label></fieldset>'
        f'<ul class="legend">{"".join(keys)}</ul></div>',
        frame(),
    ]
    for group, metrics in groups.items():
        if not metrics or group in _IN_TABLES:
            continue
        opened = " open" if group in _OPEN else ""
        parts.append(f'<details class="group" data-group="{escape(group)}"{opened}><summary>{escape(group)}/</summary>')
        parts.append('<div class="tiles">')
        for metric in metrics:
            both = curves(metric, runs, "samples", extent) + curves(metric, runs, "time", extent)
            parts.append(f"<figure><figcaption>{escape(metric)}</figcaption>{both}</figure>")
        parts.append("</div></details>")
    return _Section("curves", "Curves", "\n".join(parts))


def _place(metric: str) -> tuple[int, str]:
    figure = metric.partition("/")[2]
    return _FIRST.index(figure) if figure in _FIRST else len(_FIRST), metric


def _layers(runs: Sequence[Run]) -> Iterator[_Section]:
    if (found := layer_kl(runs)) is None:
        return
    deepest = max(map(len, found.nats))
    highest = max((value for nats in found.nats for value in nats if isfinite(value)), default=1.0)
    parts = [f'<p>Of {found.of}, at {found.samples_seen:,} samples seen.</p>\n<div class="tiles">']
    for index, (run, nats) in enumerate(zip(runs, found.nats, strict=True)):
        caption = f"{escape(run.name)}: {sum(nats):,.4f} nats in {len(nats)} layers"
        figure = bars(run.name, index, nats, deepest, highest)
        parts.append(f"<figure><figcaption>{caption}</figcaption>{figure}</figure>")
    yield _Section("layers", "KL of each layer", "\n".join([*parts, "</div>"]))


def _pictures(runs: Sequence[Run]) -> Iterator[_Section]:
    found = {name for run in runs for name, _ in run.pictures}
    if not found:
        return
    parts = []
    for name in [*(known for known in _PICTURES if known in found), *sorted(found - set(_PICTURES))]:
        steps = [{step for picture, step in run.pictures if picture == name} for run in runs]
        common = set.intersection(*(each for each in steps if each))
        parts.append(f'<h3>{escape(name)}</h3>\n<div class="tiles">')
        parts += [_picture(run, name, common or its_own) for run, its_own in zip(runs, steps, strict=True)]
        parts.append("</div>")
    yield _Section("pictures", "Pictures", "\n".join(parts))


def _picture(run: Run, name: str, steps: set[int]) -> str:
    """The newest of these steps; of a run that has none, a note."""
    step = max((step for step in steps if (name, step) in run.pictures), default=None)
    if step is None:
        return f"<figure><figcaption>{escape(run.name)}: none</figcaption></figure>"
    at = f"{escape(run.name)} at {step:,} samples seen"
    data = base64.b64encode(run.pictures[name, step]()).decode()
    return (
        f'<figure><figcaption>{at}</figcaption><img alt="{escape(name)} of {at}" data-run="{escape(run.name)}" '
        f'data-picture="{escape(name)}" data-step="{step}" src="data:image/png;base64,{data}"></figure>'
    )
