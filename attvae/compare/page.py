"""A comparison as one HTML file that needs nothing else: no network, no script."""

import base64
from collections.abc import Iterator, Sequence
from html import escape
from math import isfinite

from attvae.compare.tables import Table, all_tables, not_comparable
from attvae.pages.curve_tiles import curve_tiles
from attvae.pages.document import Section, document, table
from attvae.pages.layer_bars import bars, layer_kl
from attvae.tracking.run import Run

_PICTURES = ("samples", "reconstructions", "depth_attention", "layer_kl")


def page(runs: Sequence[Run]) -> str:
    title = ", ".join(run.name for run in runs) if len(runs) <= 3 else f"{len(runs)} runs"
    careful = [f'<p class="careful">Careful: {escape(reason)}.</p>' for reason in not_comparable(runs)]
    curves = Section("curves", "Curves", curve_tiles(runs, ("samples", "time")))
    sections = [*map(_table, all_tables(runs)), curves, *_layers(runs), *_pictures(runs)]
    return document(title, "compare", careful, sections)


def _table(found: Table) -> Section:
    return Section(found.name, found.title, table(found.title, found.columns, found.rows))


def _layers(runs: Sequence[Run]) -> Iterator[Section]:
    if (found := layer_kl(runs)) is None:
        return
    deepest = max(map(len, found.nats))
    highest = max((value for nats in found.nats for value in nats if isfinite(value)), default=1.0)
    parts = [f'<p>Of {found.of}, at {found.samples_seen:,} samples seen.</p>\n<div class="tiles">']
    for index, (run, nats) in enumerate(zip(runs, found.nats, strict=True)):
        caption = f"{escape(run.name)}: {sum(nats):,.4f} nats in {len(nats)} layers"
        figure = bars(run.name, index, nats, deepest, highest)
        parts.append(f"<figure><figcaption>{caption}</figcaption>{figure}</figure>")
    yield Section("layers", "KL of each layer", "\n".join([*parts, "</div>"]))


def _pictures(runs: Sequence[Run]) -> Iterator[Section]:
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
    yield Section("pictures", "Pictures", "\n".join(parts))


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
