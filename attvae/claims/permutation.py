"""Exact permutation tests over few trainings, and one of agreement: pure, without torch.

The unit is the training (a seed). Seeds are not paired, although trainings of one seed share the order of their images
and the binarisation: what that makes alike counts as noise here, so that the tests err on the cautious side.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")

LEVEL = 0.05
"""Of all tests, one-sided: three against three trainings have 20 splits, so that 0.05 is the least p of one depth."""

SHUFFLES = 9_999


class Tested(NamedTuple):
    effect: float
    """Mean over the strata of the statistic."""
    p_greater: float
    """Share of the splits with an effect as large or larger, the observed one included."""
    p_less: float
    splits: int


def stratified_test(
    strata: Sequence[tuple[Sequence[T], Sequence[T]]], statistic: Callable[[Sequence[T], Sequence[T]], float]
) -> Tested:
    """Exact test of two groups in each stratum: all ways to deal a stratum's items to groups of these sizes.

    Raises:
        ValueError: there is no stratum, or a group is empty.
    """
    if not strata or not all(first and second for first, second in strata):
        raise ValueError("a permutation test needs a stratum, and two groups with an item in each")
    of_strata = [_splits(list(first), list(second), statistic) for first, second in strata]
    observed = sum(each[0] for each in of_strata)
    near = 1e-9 * sum(np.abs(each).max() for each in of_strata)
    middle = len(of_strata) // 2
    left, right = _sums(of_strata[:middle]), np.sort(_sums(of_strata[middle:]))
    splits = left.size * right.size
    less = int(np.searchsorted(right, observed - near - left, "left").sum())
    not_greater = int(np.searchsorted(right, observed + near - left, "right").sum())
    return Tested(float(observed) / len(of_strata), (splits - less) / splits, not_greater / splits, splits)


def sign_test(differences: Sequence[float]) -> float:
    """One-sided exact sign test: probability of as many positive ones if either sign is as likely."""
    positive = sum(each > 0 for each in differences)
    n = len(differences)
    return sum(math.comb(n, i) for i in range(positive, n + 1)) / 2**n


def agreement(patterns: Sequence[Sequence[Sequence[float]]]) -> tuple[float, float]:
    """Whether trainings have the same pattern: mean Pearson correlation over pairs of trainings, and its p.

    Compared are the entries of all rows as deviations from their row's mean. Under the null hypothesis the entries of
    each row lie in any order, independently in each training: SHUFFLES of them, from a fixed seed.

    Args:
        patterns: of each training, rows of two or more entries; rows are as long in all trainings.

    Returns:
        Correlation and one-sided p; nan and 1 if a training's rows are all constant.

    Raises:
        ValueError: there are fewer than two trainings.
    """
    if len(patterns) < 2:
        raise ValueError(f"agreement needs two trainings or more, found {len(patterns)}")
    centred = [[np.array(row) - np.mean(row) for row in rows] for rows in patterns]
    if any(np.allclose(np.concatenate(rows), 0, atol=1e-12) for rows in centred):
        return math.nan, 1.0
    observed = _mean_correlation(np.stack([np.concatenate(rows) for rows in centred])[None])[0]
    random = np.random.default_rng(0)
    shuffled = np.stack(
        [
            np.concatenate([random.permuted(np.tile(row, (SHUFFLES, 1)), axis=1) for row in rows], axis=1)
            for rows in centred
        ],
        axis=1,
    )
    as_large = int((_mean_correlation(shuffled) >= observed - 1e-12).sum())
    return float(observed), (1 + as_large) / (1 + SHUFFLES)


def _splits(first: list[T], second: list[T], statistic: Callable[[Sequence[T], Sequence[T]], float]) -> np.ndarray:
    """The statistic of each way to deal them; the observed one comes first."""
    items = first + second
    found = []
    for chosen in itertools.combinations(range(len(items)), len(first)):
        rest = [items[i] for i in range(len(items)) if i not in chosen]
        found.append(statistic([items[i] for i in chosen], rest))
    return np.array(found)


def _sums(of_strata: Sequence[np.ndarray]) -> np.ndarray:
    """All sums of one value of each stratum."""
    sums = np.zeros(1)
    for each in of_strata:
        sums = np.add.outer(sums, each).ravel()
    return sums


def _mean_correlation(patterns: np.ndarray) -> np.ndarray:
    """Mean over pairs of the n patterns [..., n, entries], whose means are zero, of their correlation: [...]."""
    unit = patterns / np.linalg.norm(patterns, axis=-1, keepdims=True)
    n = patterns.shape[-2]
    return (np.square(unit.sum(axis=-2)).sum(axis=-1) - n) / (n * (n - 1))
