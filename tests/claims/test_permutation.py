"""The tests of significance, against scipy and against enumeration."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from attvae.claims.permutation import agreement, sign_test, stratified_test


def difference(first: Any, second: Any) -> float:
    return float(np.mean(first) - np.mean(second))


@pytest.mark.parametrize("sizes", [(3, 3), (2, 4), (4, 2)])
def test_one_stratum_against_scipy(sizes: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    first, second = (random.normal(size=n).tolist() for n in sizes)
    found = stratified_test([(first, second)], difference)
    for alternative, p in (("greater", found.p_greater), ("less", found.p_less)):
        reference = stats.permutation_test((first, second), difference, alternative=alternative, n_resamples=10**6)
        assert p == pytest.approx(reference.pvalue)
    assert found.splits == math.comb(sum(sizes), sizes[0])
    assert found.effect == pytest.approx(difference(first, second))


def test_strata_against_enumeration() -> None:
    random = np.random.default_rng(2)
    strata = [(random.normal(size=3).tolist(), random.normal(size=2).tolist()) for _ in range(3)]
    effects = []
    for dealt in itertools.product(itertools.combinations(range(5), 3), repeat=3):
        of_strata = [np.array(first + second) for first, second in strata]
        effects.append(
            np.mean([difference(x[list(c)], np.delete(x, c)) for x, c in zip(of_strata, dealt, strict=True)])
        )
    found = stratified_test(strata, difference)
    assert found.splits == len(effects) == 1000
    assert found.p_greater == np.mean(np.array(effects) >= found.effect - 1e-12)
    assert found.p_less == np.mean(np.array(effects) <= found.effect + 1e-12)


def test_least_p_of_three_depths_and_of_one() -> None:
    apart = ([1.0, 1.1, 1.2], [0.0, 0.1, 0.2])
    assert stratified_test([apart], difference).p_greater == 1 / 20
    assert stratified_test([apart] * 3, difference).p_greater == 1 / 8000
    assert stratified_test([apart] * 3, difference).p_less == 1.0


def test_all_alike_has_p_one() -> None:
    found = stratified_test([([0.1, 0.1], [0.1, 0.1])], difference)
    assert (found.effect, found.p_greater, found.p_less) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize("strata", [[], [([1.0], [])]])
def test_nothing_to_test_is_an_error(strata: Any) -> None:
    with pytest.raises(ValueError, match="needs a stratum"):
        stratified_test(strata, difference)


@pytest.mark.parametrize("positive", range(10))
def test_sign_test_against_scipy(positive: int) -> None:
    reference = stats.binomtest(positive, 9, alternative="greater").pvalue
    assert sign_test([1.0] * positive + [-1.0] * (9 - positive)) == pytest.approx(reference)


def test_agreement_against_scipy() -> None:
    random = np.random.default_rng(3)
    trainings = [[random.dirichlet(np.ones(n)).tolist() for n in (2, 4, 7)] for _ in range(3)]
    flat = [np.concatenate([np.array(row) - np.mean(row) for row in rows]) for rows in trainings]
    reference = np.mean([stats.pearsonr(a, b).statistic for a, b in itertools.combinations(flat, 2)])
    correlation, p = agreement(trainings)
    assert correlation == pytest.approx(reference)
    assert 0.05 < p <= 1.0  # drawn independently


def test_agreement_of_one_row_against_all_orders() -> None:
    """Two trainings with the same row of four: of the 24 orders of one relative to the other, one agrees as well."""
    _, p = agreement([[[0.1, 0.2, 0.3, 0.4]], [[0.2, 0.4, 0.6, 0.8]]])
    assert p == pytest.approx(1 / 24, abs=4 * math.sqrt(1 / 24 / 9_999))


def test_agreement_of_what_has_no_pattern() -> None:
    correlation, p = agreement([[[0.5, 0.5]], [[0.1, 0.9]]])
    assert math.isnan(correlation)
    assert p == 1.0
    with pytest.raises(ValueError, match="two trainings or more"):
        agreement([[[0.5, 0.5]]])
