"""What a study says of each of the paper's claims: pure, from results to verdicts with their numbers.

Means are over seeds, tests are those of attvae.claims.permutation.
"""

import math
from collections.abc import Callable, Sequence
from statistics import fmean

from attvae.claims.attention_verdicts import sparse, structured
from attvae.claims.outcome import Outcome, Verdict, by_test, conclude, p_of, signed, significant
from attvae.claims.permutation import Tested, stratified_test
from attvae.claims.race import race, s_per_image
from attvae.claims.results import (
    ATTENTIVE,
    BASELINE,
    DEPTH,
    EQUAL_TIME,
    Cell,
    Done,
    Results,
    Stratum,
    Unit,
    done,
    of_one_machine,
    strata,
)
from attvae.evaluation.elbo import ACTIVE_NATS

EQUAL = 0.05
"""Two training times are equal if they differ by at most this part of the attentive model's."""


def verdicts(results: Results) -> list[Verdict]:
    """One for each claim, of the cells of set DEPTH; those of EQUAL_TIME join them where they have been run."""
    return [
        likelihood(results, DEPTH, "nats"),
        fewer_layers(results),
        less_time(results),
        upper_layers(results, DEPTH),
        sparse(results),
        structured(results),
    ]


def likelihood(results: Results, set_name: str, unit: Unit) -> Verdict:
    """The test NELBO with and without attention, at each depth."""
    claim = "Attention over the depth gives a better likelihood"
    baseline, attentive = _sides(results, set_name)
    groups = strata(baseline, attentive)
    if not groups:
        return _nothing_to_compare(claim)
    digits = 2 if unit == "nats" else 3
    tested = _less(groups, lambda cell: cell.nelbo(unit))
    bound = _less(groups, lambda cell: cell.test.iw_nll_nats.value * cell.per_nat(unit))
    each = [_less([group], lambda cell: cell.nelbo(unit)).effect for group in groups]
    sentence = (
        f"Test NELBO with attention less that without: {signed(-tested.effect, digits)} {unit} in the mean over depths "
        f"{_depths(groups)} ({', '.join(signed(-effect, digits) for effect in each)}), {p_of(tested)}. "
        f"Importance-weighted bound: {signed(-bound.effect, digits)} {unit}, {p_of(bound)}."
    )
    return conclude(claim, by_test(tested), sentence + _left_out(baseline, attentive), baseline, attentive)


def fewer_layers(results: Results) -> Verdict:
    """Of each depth with attention, the least depth at which the baseline has its mean NELBO or less."""
    claim = "The same likelihood with fewer layers"
    baseline, attentive = _sides(results, DEPTH)
    groups = strata(baseline, attentive)
    if len(groups) < 2:
        return Verdict(claim, "not measured", "That needs two depths with ended cells of both models.")
    needed = layers_needed(groups)
    shallow, deep = min(needed), max(needed)
    whole = deep == max(cell.depth for cell in [*baseline, *attentive])
    profit = stratified_test([(groups[0].baseline, groups[-1].baseline)], _difference(lambda cell: cell.nelbo("nats")))
    profits = profit.effect > 0 and significant(profit.p_greater)
    saved = _less([group for group in groups if group.depth < deep], lambda cell: cell.nelbo("nats"))
    lost = _less([group for group in groups if group.depth > shallow], lambda cell: cell.nelbo("nats"))
    outcome: Outcome = "not shown at this scale"
    more = all((k or math.inf) > d for d, k in needed.items() if d < deep)
    fewer = all((k or math.inf) < d for d, k in needed.items() if d > shallow)
    if whole and profits and more and significant(saved.p_greater):
        outcome = "shown"
    elif profits and fewer and significant(lost.p_less):
        outcome = "contradicted"
    reached = "; ".join(f"{d} layers: {k or f'not reached with up to {deep}'}" for d, k in needed.items())
    lengths = "; ".join(f"{group.depth}: {fmean(cell.samples for cell in group.baseline):,.0f}" for group in groups)
    nothing = "" if profits else ": at these lengths no gain from depth is seen, so that fewer layers are no advantage"
    sentence = (
        f"Layers with which the baseline reaches the attentive model's NELBO: {reached}. The baseline has "
        f"{_nelbo(groups[0].baseline):.2f} nats with {shallow} layers, {_nelbo(groups[-1].baseline):.2f} with {deep}, "
        f"{p_of(profit)}{nothing}. Trained on, by layers: {lengths} samples."
    )
    return conclude(claim, outcome, sentence + _left_out(baseline, attentive), baseline, attentive)


def less_time(results: Results) -> Verdict:
    """Samples and seconds of training until both models have the worse one's final validation NELBO."""
    claim = "The same likelihood in less training time"
    baseline, attentive = _sides(results, DEPTH)
    groups = strata(baseline, attentive)
    if not groups:
        return _nothing_to_compare(claim)
    races = [race(group.baseline, group.attentive) for group in groups]
    samples = _times([each.samples_ratio for each in races])
    if not of_one_machine(done([*baseline, *attentive])):
        sentence = (
            "The cells are of more than one machine, so that their seconds cannot be compared. To the worse of the two "
            f"final validation NELBOs the baseline takes {samples} times the samples of the attentive model at depths "
            f"{_depths(groups)}."
        )
        return conclude(claim, "not measured", sentence + _left_out(baseline, attentive), baseline, attentive)
    tested = stratified_test([(group.baseline, group.attentive) for group in groups], _log_ratio_of_seconds)
    ratios = [each.seconds_ratio for each in races]
    sentence = (
        f"To the worse of the two final validation NELBOs the baseline takes {_times(ratios)} times the training time "
        f"of the attentive model at depths {_depths(groups)}, {p_of(tested)}, and "
        f"{samples} times its samples.{_left_out(baseline, attentive)} "
    )
    outcome = (
        by_test(tested) if all((ratio > 1) == (tested.effect > 0) for ratio in ratios) else "not shown at this scale"
    )
    longer = [cell for cell in results.of(EQUAL_TIME, BASELINE) if cell.status != "missing"]
    said, at_equal_time = _at_equal_time(groups, longer, len(results.of(EQUAL_TIME, BASELINE)), attentive)
    if at_equal_time not in (None, outcome):
        outcome = "not shown at this scale"
    return conclude(claim, outcome, sentence + said, [*baseline, *longer], attentive)


def _at_equal_time(
    groups: Sequence[Stratum], longer: Sequence[Cell], wanted: int, attentive: Sequence[Cell]
) -> tuple[str, Outcome | None]:
    """What baselines that train longer say, and the outcome of that; None: they have no say.

    Args:
        groups: of the set DEPTH, for the seconds per image.
        longer: baselines of EQUAL_TIME that were tried, of so many `wanted`.
    """
    if not longer or len(longer) < wanted:
        run = f"{len(longer)} of {wanted} baselines run" if longer else "not run"
        return f"At equal training time: {run}.", None
    of_depth = {group.depth: group for group in groups}
    as_long = [each for each in strata(longer, attentive) if each.depth in of_depth]
    if not as_long:
        return "At equal training time: no baseline has ended.", None
    totals = [
        (
            fmean(cell.samples for cell in each.baseline) * s_per_image(of_depth[each.depth].baseline),
            fmean(cell.samples for cell in each.attentive) * s_per_image(each.attentive),
        )
        for each in as_long
    ]
    seconds = ", ".join(f"{without:,.0f} against {with_:,.0f}" for without, with_ in totals)
    apart = max(abs(without / with_ - 1) for without, with_ in totals)
    if apart > EQUAL:
        sentence = (
            f"The baselines of `{EQUAL_TIME}` train {seconds} seconds, without against with attention, at depths "
            f"{_depths(as_long)}: up to {apart:.0%} apart, which is not equal and has no say."
        )
        return sentence, None
    equal = _less(as_long, lambda cell: cell.nelbo("nats"))
    sentence = (
        f"At equal training time ({seconds} seconds, without against with attention, at depths {_depths(as_long)}), "
        f"test NELBO with attention less that without: {signed(-equal.effect)} nats, {p_of(equal)}."
    )
    return sentence, by_test(equal)


def upper_layers(results: Results, set_name: str) -> Verdict:
    """How many layers of the top half have a KL above ACTIVE_NATS, and the KL of that half."""
    claim = "The upper layers stay active, without posterior collapse"
    baseline, attentive = _sides(results, set_name)
    groups = strata(baseline, attentive)
    if not groups:
        return _nothing_to_compare(claim)
    tested = _more(groups, _active_share)
    kl = _more(groups, lambda cell: sum(cell.top_half_kl_nats))
    active = fmean(fmean(map(_active_share, group.attentive)) for group in groups)
    without = fmean(fmean(map(_active_share, group.baseline)) for group in groups)
    outcome = by_test(tested)
    if outcome == "shown" and active <= 0.5:
        outcome = "not shown at this scale"
    sentence = (
        f"Of the layers of the top half, {active:.0%} are active (KL above {ACTIVE_NATS} nats) with attention, "
        f"{without:.0%} without, {p_of(tested)}; their KL together with attention less that without: "
        f"{signed(kl.effect)} nats, {p_of(kl)}."
    )
    if without == 1 and not any(cell.status == "missing" for cell in baseline):
        sentence += " No upper layer of the baseline has collapsed at this scale: there is nothing to avoid."
    return conclude(claim, outcome, sentence + _left_out(baseline, attentive), baseline, attentive)


def layers_needed(groups: Sequence[Stratum]) -> dict[int, int | None]:
    """Of each depth, the least depth, if any, at which the baseline has the attentive model's mean NELBO or less."""
    without = {group.depth: _nelbo(group.baseline) for group in groups}
    return {
        group.depth: next((depth for depth in without if without[depth] <= _nelbo(group.attentive)), None)
        for group in groups
    }


def _sides(results: Results, set_name: str) -> tuple[list[Cell], list[Cell]]:
    return results.of(set_name, BASELINE), results.of(set_name, ATTENTIVE)


def _nothing_to_compare(claim: str) -> Verdict:
    return Verdict(claim, "not measured", "No depth has ended cells of both models.")


def _left_out(baseline: Sequence[Cell], attentive: Sequence[Cell]) -> str:
    """The depths at which a side has no ended cell."""
    compared = {group.depth for group in strata(baseline, attentive)}
    depths = sorted({cell.depth for cell in [*baseline, *attentive]} - compared)
    return f" Left out, as a side has no ended cell: depth {', '.join(map(str, depths))}." if depths else ""


def _nelbo(cells: Sequence[Done]) -> float:
    return fmean(cell.nelbo("nats") for cell in cells)


def _active_share(cell: Done) -> float:
    return fmean(kl > ACTIVE_NATS for kl in cell.top_half_kl_nats)


def _difference(of: Callable[[Done], float]) -> Callable[[Sequence[Done], Sequence[Done]], float]:
    """The mean of the first group less that of the second."""
    return lambda first, second: fmean(map(of, first)) - fmean(map(of, second))


def _less(groups: Sequence[Stratum], of: Callable[[Done], float]) -> Tested:
    """By how much less the attentive model has; stratified over the depths."""
    return stratified_test([(group.baseline, group.attentive) for group in groups], _difference(of))


def _more(groups: Sequence[Stratum], of: Callable[[Done], float]) -> Tested:
    return stratified_test([(group.attentive, group.baseline) for group in groups], _difference(of))


def _log_ratio_of_seconds(baseline: Sequence[Done], attentive: Sequence[Done]) -> float:
    return math.log(race(baseline, attentive).seconds_ratio)


def _depths(groups: Sequence[Stratum]) -> str:
    return ", ".join(str(group.depth) for group in groups)


def _times(ratios: Sequence[float]) -> str:
    return ", ".join(f"{ratio:.2f}" for ratio in ratios)
