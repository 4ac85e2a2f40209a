"""A sweep as one HTML file that needs nothing else: no network, no script."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from attvae.pages.document import Section, document
from attvae.search.config import SearchConfig
from attvae.search.curves import Curve, trial_curves
from attvae.search.importance import FEWEST_TRIALS, Importance, importance
from attvae.search.lines import figure_text, lines_of
from attvae.search.parallel_coordinates import parallel_coordinates
from attvae.search.space import format_value, planned_trials
from attvae.search.sweep_folder import SweepFolder
from attvae.search.trial import Trial, best_of, finite, journal, ranked

_STYLE = Path(__file__).with_name("page.css")

_CREDIBLE = 0.1
"""A forest that explains less of the variance says nothing about keys."""

_MANY = 50
"""With fewer trials the page warns."""


class _Importance(NamedTuple):
    found: Importance | None
    trials: int
    samples_seen: int


def page(search: SearchConfig, folder: SweepFolder, trials: Sequence[Trial]) -> str:
    curves = {trial.id: finite(journal(folder.generations(trial.id)), search.metric) for trial in trials}
    lines = lines_of(trials, search.metric)
    sections = [
        Section("trials", "Trials", _table(search, trials)),
        Section(
            "coordinates",
            "Parallel coordinates",
            f'{_LEGEND}<figure class="wide" tabindex="0">'
            f"{parallel_coordinates(search.space, lines, search.metric)}</figure>",
        ),
        Section(
            "curves",
            "Curves and importance",
            '<div class="pair">'
            f"<figure><figcaption>{escape(search.metric)}</figcaption>"
            f"{trial_curves(curves, lines, search.metric)}</figure>"
            f"<figure><figcaption>What the keys account for</figcaption>{_importance(search, trials, curves)}</figure>"
            "</div>",
        ),
    ]
    lead = [f"<p>{_summary(search, trials)}</p>"]
    return document(f"Sweep {search.name}", "sweep", lead, sections, [_STYLE])


_LEGEND = (
    '<p class="key-of-lines"><span>best <i class="scale"></i> worst, by rank of the newest figure</span> '
    "<span><svg viewBox='0 0 36 8'><path d='M1 4H35'/></svg> whole budget, or running</span> "
    "<span><svg viewBox='0 0 36 8'><path d='M1 4H35' stroke-dasharray='6 3'/></svg> stopped early</span> "
    "<span><svg viewBox='0 0 36 8'><path d='M1 4H35' stroke-dasharray='1.5 3'/></svg> failed</span></p>"
)


def _summary(search: SearchConfig, trials: Sequence[Trial]) -> str:
    counts = {status: sum(trial.status == status for trial in trials) for status in ("finished", "stopped", "failed")}
    ended = sum(counts.values())
    planned = planned_trials(search)
    said = [
        f"{ended} of {planned} trials have ended: {counts['finished']} after the whole budget of {search.samples:,} "
        f"samples, {counts['stopped']} stopped early, {counts['failed']} failed."
    ]
    if (best := best_of(trials, search.metric)) is not None:
        said.append(
            f"The best is <strong>trial {escape(best.id)}</strong>: {escape(search.metric)} "
            f"{figure_text(best.figure(search.metric))} at {best.samples_seen:,} samples, chosen by the validation "
            'images; <a href="best.yaml">best.yaml</a> trains it in full.'
        )
        if best.test:
            test = ", ".join(f"{escape(name)} {figure_text(value)}" for name, value in best.test.items())
            said.append(f"As a trial, on test images: {test}.")
    return " ".join(said)


def _table(search: SearchConfig, trials: Sequence[Trial]) -> str:
    keys = (key.replace(".", ".\n") for key in search.space)  # narrower columns
    columns = ("trial", "status", search.metric.replace("/", "/\n"), "samples\nseen", *keys)
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    rows = []
    for trial in ranked(trials, search.metric):
        status = escape(trial.status)
        if trial.reason:
            status = f"<details><summary>{status}</summary>{escape(trial.reason)}</details>"
        values = (format_value(trial.config[key]) if key in trial.config else "–" for key in search.space)
        cells = [
            f"<td>{status}</td>",
            f"<td>{figure_text(trial.figure(search.metric))}</td>",
            f"<td>{trial.samples_seen:,}</td>",
            *(f"<td>{escape(value)}</td>" for value in values),
        ]
        rows.append(f'<tr><th scope="row">{escape(trial.id)}</th>{"".join(cells)}</tr>')
    return (
        '<div class="wide" role="region" tabindex="0" aria-label="Trials">'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(rows)}\n</tbody></table></div>"
    )


def _importance(search: SearchConfig, trials: Sequence[Trial], curves: Mapping[str, Curve]) -> str:
    found, compared, at = _at_equal_samples(search, trials, curves)
    where = f"{compared} trials at {at:,} samples seen"
    if found is None:
        return f"<p>{where}: at least {FEWEST_TRIALS} with differing figures are needed.</p>"
    if found.explained < _CREDIBLE:
        return (
            f"<p>{where}: too few, or too noisy, to tell. A random forest that has learnt from some of them predicts "
            f"the order of the others hardly better than chance ({max(found.explained, 0):.0%} of its variance).</p>"
        )
    bars = "".join(
        f"<dt>{escape(key)}</dt>"
        f'<dd data-key="{escape(key)}"><i style="--share: {100 * min(share, 1):.1f}%"></i>{share:.0%}</dd>'
        for key, share in sorted(found.shares.items(), key=lambda item: -item[1])
    )
    caution = " With so few trials this is a hint, no more." if compared < _MANY else ""
    return (
        f'<dl class="bars">{bars}</dl>'
        f"<p>Of {where}: the share of the variance of their order that is lost when a key's values are shuffled "
        "(permutation importance of a random forest, on trials that its trees have not seen). The forest explains "
        f"{found.explained:.0%} of that variance.{caution}</p>"
    )


def _at_equal_samples(search: SearchConfig, trials: Sequence[Trial], curves: Mapping[str, Curve]) -> _Importance:
    """Figures are compared where the trial that was stopped first was stopped: later, more training is in them."""
    ends = [curves[trial.id][-1][0] for trial in trials if trial.status != "failed" and curves[trial.id]]
    at = min(ends, default=0)
    newest = {
        trial.id: [value for samples, value in curves[trial.id] if samples <= at][-1:]
        for trial in trials
        if curves[trial.id] and curves[trial.id][-1][0] >= at
    }
    compared = [(trial.config, newest[trial.id][0]) for trial in trials if newest.get(trial.id)]
    found = importance(search.space, [point for point, _ in compared], [figure for _, figure in compared])
    return _Importance(found, len(compared), at)
