"""How long models train to a given NELBO, on curves whose answers are known."""

import numpy as np
import pytest
from made_study import cell, read

from attvae.claims.race import first_at, mean_curve, race
from attvae.claims.results import Done, done


def a_curve(points: list[list[float]], seed: int = 0, cost: float = 1e-3, variant: str = "none") -> Done:
    (found,) = done(read(cell(2, variant, seed, curve=points, s_per_image=cost)).cells)
    return found


def test_curves_are_straight_between_their_points() -> None:
    samples, nelbo = np.array([100.0, 200.0, 400.0]), np.array([30.0, 20.0, 10.0])
    assert first_at(15.0, samples, nelbo) == 300.0
    assert first_at(20.0, samples, nelbo) == 200.0
    assert first_at(35.0, samples, nelbo) == 100.0


def test_mean_of_curves_with_different_points() -> None:
    curves = [a_curve([[0, 10.0], [100, 0.0]]), a_curve([[50, 6.0], [100, 2.0], [200, 1.0]], seed=1)]
    samples, nelbo = mean_curve(curves)
    assert samples.tolist() == [50.0, 100.0]
    assert nelbo.tolist() == [5.5, 1.0]


def test_a_curve_ends_at_the_final_figure() -> None:
    given = cell(2, "none", 0, curve=[[0, 40.0], [100, 20.5]]) | {"val": {"nelbo_nats": 20.0}}
    (found,) = done(read(given).cells)
    assert found.curve == [(0, 39.5), (100, 20.0)]


def test_race_to_the_worse_of_the_two_ends() -> None:
    slow = a_curve([[0, 40.0], [100, 20.0]], cost=2.0)
    fast = a_curve([[0, 40.0], [100, 0.0]], cost=3.0, variant="both")
    found = race([slow], [fast])
    assert found.target_nats == 20.0
    assert found.samples == (100.0, 50.0)
    assert found.seconds == (200.0, 150.0)
    assert found.seconds_ratio == pytest.approx(4 / 3)
