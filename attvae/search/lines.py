"""How a trial's line looks, in all charts of the page alike: coloured by its rank, dashed by what became of it."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from attvae.search.space import describe
from attvae.search.trial import Trial

_DASHES = {"finished": "none", "running": "none", "stopped": "6 3", "failed": "1.5 3"}
_INFINITE = 1e100  # what is larger is left out as if it were


class Line(NamedTuple):
    """A trial as it is drawn."""

    trial: Trial
    rank: float | None
    """0 for the best figure, 1 for the worst; None without a figure."""
    says: str

    @property
    def attributes(self) -> str:
        """Of the SVG element; the style sheet makes the colour of --rank."""
        rank = "" if self.rank is None else f' style="--rank: {100 * self.rank:.0f}%"'
        best = " best" if self.rank == 0 else ""
        known = "ranked" if self.rank is not None else "unranked"
        return (
            f'class="trial {known}{best}"{rank} data-trial="{escape(self.trial.id)}" '
            f'stroke-dasharray="{_DASHES[self.trial.status]}"'
        )

    @property
    def title(self) -> str:
        return f"<title>{escape(self.says)}</title>"


def lines_of(trials: Sequence[Trial], metric: str) -> list[Line]:
    """The worst first, so that the best lies on top."""
    figures = {trial.id: trial.figure(metric) for trial in trials if drawable(trial.figure(metric))}
    order = sorted(figures, key=figures.__getitem__)
    places = {trial_id: i / max(1, len(order) - 1) for i, trial_id in enumerate(order)}
    lines = [
        Line(
            trial,
            places.get(trial.id),
            f"trial {trial.id}, {trial.status} at {trial.samples_seen:,} samples: {metric} "
            f"{figure_text(figures.get(trial.id))}; {describe(trial.config)}",
        )
        for trial in trials
    ]
    return sorted(lines, key=lambda line: math.inf if line.rank is None else line.rank, reverse=True)


def drawable(number: float) -> bool:
    return abs(number) < _INFINITE


def figure_text(figure: float | None) -> str:
    return "–" if figure is None or not drawable(figure) else f"{figure:,.4f}"
