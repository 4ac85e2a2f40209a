"""A verdict on a claim: what it may be, and what failed and missing cells do to it.

A failed cell never helps its side: one of the attentive model keeps a claim from being shown, one of the baseline keeps
it from being contradicted. As long as a cell is missing, nothing has been measured.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from attvae.claims.permutation import LEVEL, Tested
from attvae.claims.results import Cell

Outcome = Literal["shown", "not shown at this scale", "contradicted", "not measured"]


class Verdict(NamedTuple):
    claim: str
    outcome: Outcome
    sentence: str


def significant(p: float) -> bool:
    return p <= LEVEL


def by_test(tested: Tested) -> Outcome:
    """Of a test whose effect is positive where the claim holds."""
    if tested.effect > 0 and significant(tested.p_greater):
        return "shown"
    return "contradicted" if tested.effect < 0 and significant(tested.p_less) else "not shown at this scale"


def conclude(
    claim: str, outcome: Outcome, sentence: str, baseline: Sequence[Cell], attentive: Sequence[Cell]
) -> Verdict:
    """The verdict from ended cells, once those that have not ended are taken into account and named."""
    cells = [*baseline, *attentive]
    if missing := sum(cell.status == "missing" for cell in cells):
        return Verdict(claim, "not measured", f"So far, with {missing} of {len(cells)} cells missing: {sentence}")
    failed = [cell.id for cell in cells if cell.status == "failed"]
    kept_from = {
        "shown": any(cell.status == "failed" for cell in attentive),
        "contradicted": any(cell.status == "failed" for cell in baseline),
    }
    if failed:
        sentence += f" Failed, and not in these means: {', '.join(failed)}."
    if kept_from.get(outcome):
        return Verdict(claim, "not shown at this scale", f"{sentence} Without the failures it would be {outcome}.")
    return Verdict(claim, outcome, sentence)


def signed(value: float, digits: int = 2) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def p_of(tested: Tested) -> str:
    """The one-sided p of the direction that was found."""
    p = tested.p_greater if tested.effect >= 0 else tested.p_less
    return f"p = {p:.2g} ({tested.splits:,} splits)"
