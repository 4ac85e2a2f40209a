"""Which keys of a space matter: how much worse a random forest predicts the trials' order without each of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from attvae.search.config import Dimension
from attvae.search.space import Point, Space

FEWEST_TRIALS = 8
"""With fewer, nothing is said."""

_TREES = 300


class Importance(NamedTuple):
    """What a forest says of a space."""

    explained: float
    """Share of the variance of the trials' ranks that it predicts for trials which it has not seen; 0 or less: none."""
    shares: Mapping[str, float]
    """Share of that variance which each key accounts for, together with what it does jointly with others."""


def importance(space: Space, points: Sequence[Point], figures: Sequence[float]) -> Importance | None:
    """Permutation importance on each tree's out-of-bag trials (Breiman 2001), of the ranks of the figures, so that one
    trial that has diverged does not outweigh all others; halved, it estimates Sobol's total index.

    Returns:
        None if there are fewer than FEWEST_TRIALS, or all figures are equal.
    """
    from sklearn.ensemble import RandomForestRegressor

    if len(points) < FEWEST_TRIALS or len(set(figures)) < 2:
        return None
    x = np.array([[place(dimension, point.get(key)) for key, dimension in space.items()] for point in points])
    y = _ranks(np.array(figures))
    forest = RandomForestRegressor(_TREES, min_samples_leaf=2, oob_score=True, random_state=0).fit(x, y)
    shuffle = np.random.default_rng(0)
    worse: list[np.ndarray] = []
    for tree, seen in zip(forest.estimators_, forest.estimators_samples_, strict=True):
        unseen = np.setdiff1d(np.arange(len(y)), seen)
        if len(unseen) < 2:
            continue
        shuffled = np.repeat(x[None, unseen], len(space) + 1, axis=0)  # the last one as it is
        for i in range(len(space)):
            shuffle.shuffle(shuffled[i, :, i])
        found = tree.predict(shuffled.reshape(-1, len(space))).reshape(len(space) + 1, -1)
        errors = np.square(found - y[unseen]).mean(axis=1)
        worse.append(errors[:-1] - errors[-1])
    shares = np.mean(worse, axis=0) / (2 * y.var())
    return Importance(float(forest.oob_score_), dict(zip(space, np.maximum(shares, 0.0).tolist(), strict=True)))


def place(dimension: Dimension, value: Any) -> float:
    """Where a value lies in its dimension, from 0 to 1; -0.5 if the key is not searched in this trial."""
    if value is None and (dimension.choice is None or None not in dimension.choice):
        return -0.5
    if dimension.choice is not None:
        return dimension.choice.index(value) / max(1, len(dimension.choice) - 1)
    low, high = dimension.bounds
    if dimension.kind == "loguniform":
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low)


def _ranks(figures: np.ndarray) -> np.ndarray:
    """0 for the least; equal figures share the mean of their places."""
    from scipy.stats import rankdata

    return rankdata(figures) - 1.0
