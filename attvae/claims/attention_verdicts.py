"""What a study says of the attention itself: whether it is sparse, and structured. Pure."""

from collections.abc import Sequence
from statistics import fmean
from typing import Literal

from attvae.claims.outcome import Outcome, Verdict, conclude, signed, significant
from attvae.claims.permutation import agreement, sign_test
from attvae.claims.results import ATTENTIVE, DEPTH, Done, Results, done

SPARSE = 0.5
"""Attention is sparse below this entropy, as a fraction of that of the uniform distribution."""
BEYOND = 0.1
"""Attention with less than this probability beyond the nearest context is what a model without it sees anyway."""
PATHS = {"decoder": "generative", "encoder": "inference"}
"""The paper's names of the paths."""


def sparse(results: Results) -> Verdict:
    """The entropy of the probabilities as a fraction of the uniform distribution's, of layers with a choice."""
    claim = "The attention is sparse"
    cells = results.of(DEPTH, ATTENTIVE)
    entropies = {path: _by_seed(done(cells), path) for path in PATHS}
    worth = worth_nats(done(cells))
    if not worth or not all(entropies.values()):
        return Verdict(claim, "not measured", "That needs ended cells with a choice of contexts in both paths.")
    outcome: Outcome = "not shown at this scale"
    values = [value for each in entropies.values() for value in each]
    if significant(sign_test(worth)) and all(value < SPARSE for value in values):
        outcome = "shown"
    elif significant(sign_test(worth)) and all(value > SPARSE for value in values):
        outcome = "contradicted"
    found = " and ".join(
        f"{fmean(each):.2f} in the {PATHS[path]} path (seeds {min(each):.2f} to {max(each):.2f})"
        for path, each in entropies.items()
    )
    sentence = (
        f"Entropy as a fraction of the uniform distribution's: {found}; sparse is below {SPARSE}. {_worth(worth)}"
    )
    return conclude(claim, outcome, sentence, [], cells)


def structured(results: Results) -> Verdict:
    """Whether the trainings of the deepest model attend to the same contexts beyond the nearest one."""
    claim = "The attention is structured"
    cells = results.of(DEPTH, ATTENTIVE)
    attending = [cell for cell in done(cells) if set(PATHS) <= set(cell.attention)]
    deepest = [cell for cell in attending if cell.depth == max(each.depth for each in attending)]
    patterns = {path: [_beyond_nearest(cell, path) for cell in deepest] for path in PATHS}
    worth = worth_nats(done(cells))
    if not worth or len(deepest) < 2 or not all(rows for each in patterns.values() for rows in each):
        return Verdict(claim, "not measured", "That needs two trainings of a depth with three contexts in both paths.")
    agreed = {path: agreement(each) for path, each in patterns.items()}
    shares = {
        path: fmean(mean_over_choosing(cell, path, "share_beyond_nearest") or 0.0 for cell in deepest) for path in PATHS
    }
    outcome: Outcome = "not shown at this scale"
    if all(share < BEYOND for share in shares.values()):
        outcome = "contradicted"
    elif all(share >= BEYOND for share in shares.values()) and all(significant(p) for _, p in agreed.values()):
        outcome = "shown"
    found = "; ".join(
        f"{name} path: {shares[path]:.0%} of the probability beyond the nearest context, correlation of its pattern "
        f"between seeds {signed(agreed[path][0])} (p = {agreed[path][1]:.2g})"
        for path, name in PATHS.items()
    )
    sentence = f"At depth {deepest[0].depth}, {found}."
    if not significant(sign_test(worth)):
        outcome, sentence = "not shown at this scale", f"{sentence} {_worth(worth)}"
    return conclude(claim, outcome, sentence, [], cells)


def mean_over_choosing(
    cell: Done, path: str, figure: Literal["relative_entropy", "effective_contexts", "share_beyond_nearest"]
) -> float | None:
    """Mean over the layers of a path that have two or more contexts; None if there are none."""
    layers = cell.attention[path].choosing if path in cell.attention else []
    return fmean(getattr(layer, figure) for layer in layers) if layers else None


def worth_nats(cells: Sequence[Done]) -> list[float]:
    """How much worse the test NELBO of each cell is with attention's contribution set to zero."""
    return [
        cell.test_without_attention.nelbo_nats - cell.test.nelbo_nats.value
        for cell in cells
        if cell.test_without_attention
    ]


def _by_seed(cells: Sequence[Done], path: str) -> list[float]:
    """Of each seed, the mean over its depths of the mean relative entropy over the layers with a choice."""
    found: dict[int, list[float]] = {}
    for cell in cells:
        if (mean := mean_over_choosing(cell, path, "relative_entropy")) is not None:
            found.setdefault(cell.seed, []).append(mean)
    return [fmean(each) for each in found.values()]


def _beyond_nearest(cell: Done, path: str) -> list[list[float]]:
    """The probabilities of all contexts but the nearest, of each layer with two or more of them."""
    return [layer.others for layer in cell.attention[path].layers if len(layer.others) > 1]


def _worth(worth: Sequence[float]) -> str:
    return (
        f"With attention's contribution set to zero the test NELBO changes by {signed(fmean(worth))} nats in the mean, "
        f"and is worse in {sum(each > 0 for each in worth)} of {len(worth)} cells (p = {sign_test(worth):.2g})."
    )
