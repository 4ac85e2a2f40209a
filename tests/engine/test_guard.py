import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attvae.engine.guard import DECAY, WARMUP, GradientGuard


def seen(norms: list[float], limit: float | None = 10.0) -> GradientGuard:
    guard = GradientGuard(limit)
    for norm in norms:
        assert guard.admits(norm)
    return guard


def test_a_spike_is_above_the_limit_times_the_geometric_mean() -> None:
    norms = [2.0, 8.0] * (WARMUP // 2)  # geometric mean 4
    assert seen(norms).admits(39.9)
    assert not seen(norms).admits(40.1)
    assert seen(norms, limit=None).admits(1e30)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_what_is_not_finite_is_never_admitted_and_leaves_the_mean(norm: float) -> None:
    guard = seen([3.0])
    before = guard.mean_log_norm
    assert not guard.admits(norm)
    assert (guard.mean_log_norm, guard.norms, guard.skipped, guard.skipped_in_a_row) == (before, 1, 1, 1)


def test_early_norms_are_no_spikes() -> None:
    seen([1e-3, 1e3] * (WARMUP // 2))


def test_it_counts() -> None:
    guard = seen([1.0] * WARMUP)
    for norm in (math.nan, 100.0, 1.0, math.inf):
        guard.admits(norm)
    assert (guard.skipped, guard.skipped_in_a_row) == (3, 1)
    guard.overflowed()
    assert (guard.skipped, guard.skipped_in_a_row) == (4, 1)


@given(level=st.floats(1e-3, 1e9), limit=st.floats(1.5, 100))
def test_a_new_level_is_accepted_in_the_end(level: float, limit: float) -> None:
    """Each skipped norm raises the mean by the factor limit^(1 - d) at least."""
    guard = seen([1.0] * WARMUP, limit)
    steps = 0
    while not guard.admits(level):
        steps += 1
        assert steps <= 1 + math.log(level) / ((1 - DECAY) * math.log(limit))


def test_it_goes_on_from_what_a_checkpoint_keeps() -> None:
    norms = [1.0 + i % 7 for i in range(50)] + [500.0, 3.0, 30.0, 200.0]
    undisturbed, first = GradientGuard(5.0), GradientGuard(5.0)
    decisions = [undisturbed.admits(norm) for norm in norms]
    for norm in norms[:52]:
        first.admits(norm)
    second = GradientGuard.continued(5.0, first.state())
    assert [second.admits(norm) for norm in norms[52:]] == decisions[52:]
    assert second == undisturbed
    assert not all(decisions)
