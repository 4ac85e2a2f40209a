import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from attvae.compression.stack import CoderFailedError, Initial, Stack, bernoulli, binned_gaussian, categorical

REACH = 512


def pushed_bits(symbols: np.ndarray, family: object, *parameters: np.ndarray) -> int:
    stack = Stack(Initial(0, 10).content())
    before = stack.bits
    stack.push(symbols.astype(np.int32), family, *parameters)
    return stack.bits - before


def test_bits_of_binned_gaussians_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    mean, stddev = rng.uniform(-300, 300, 5000), np.exp(rng.uniform(0, 5, 5000))
    symbols = np.clip(np.rint(rng.normal(mean, stddev)), -REACH, REACH)
    inside = stats.norm.cdf(REACH + 0.5, mean, stddev) - stats.norm.cdf(-REACH - 0.5, mean, stddev)
    p = (stats.norm.cdf(symbols + 0.5, mean, stddev) - stats.norm.cdf(symbols - 0.5, mean, stddev)) / inside
    assert pushed_bits(symbols, binned_gaussian(REACH), mean, stddev) == pytest.approx(-np.log2(p).sum(), rel=1e-3)


def test_fine_bins_need_the_differential_entropy_less_the_width_of_a_bin() -> None:
    rng = np.random.default_rng(1)
    stddev = 40.0
    symbols = np.rint(rng.normal(0, stddev, 50_000))
    expected = 0.5 * math.log2(2 * math.pi * math.e * stddev**2)
    found = pushed_bits(symbols, binned_gaussian(REACH), np.zeros(50_000), np.full(50_000, stddev)) / 50_000
    assert found == pytest.approx(expected, abs=0.01)


def test_equal_probabilities_of_256_values_need_8_bits_each() -> None:
    symbols = np.random.default_rng(2).integers(256, size=3000)
    assert pushed_bits(symbols, categorical(), np.full((3000, 256), 1 / 256)) == pytest.approx(24_000, abs=2)


def test_ones_need_their_entropy() -> None:
    p = np.random.default_rng(3).uniform(0.001, 0.999, 20_000)
    symbols = np.random.default_rng(4).random(20_000) < p
    expected = -np.log2(np.where(symbols, p, 1 - p)).sum()
    assert pushed_bits(symbols, bernoulli(), p) == pytest.approx(expected, rel=1e-4)


def test_what_is_popped_is_a_draw() -> None:
    stack = Stack(Initial(0, 200_000).content())
    drawn = stack.pop(binned_gaussian(REACH), np.full(20_000, 7.0), np.full(20_000, 60.0))
    continuous = drawn + np.random.default_rng(5).uniform(-0.5, 0.5, 20_000)
    assert stats.kstest(continuous, stats.norm(7, 60).cdf).pvalue > 0.01


def test_a_mean_at_the_last_bin_with_no_width_is_coded_all_the_same() -> None:
    mean, stddev = np.array([-512.0, 512.0, 100.0]), np.full(3, 1e-4)
    stack = Stack(Initial(0, 10).content())
    assert stack.pop(binned_gaussian(REACH), mean, stddev).tolist() == [-512, 512, 100]


def test_a_panic_of_the_coder_is_an_error_like_others() -> None:
    with pytest.raises(CoderFailedError, match="`std` must be positive"):
        Stack(Initial(0, 10).content()).pop(binned_gaussian(REACH), np.zeros(1), np.zeros(1))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**63), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_pushing_what_was_popped_gives_the_same_bits_back(seed: int, number: int, parameters: int) -> None:
    initial = Initial(seed, 2 + number)
    stack, rng = Stack(initial.content()), np.random.default_rng(parameters)
    mean, stddev = rng.uniform(-REACH, REACH, number), np.exp(rng.uniform(-8, 6, number))
    p, table = rng.random(number), rng.dirichlet(np.full(16, 0.1), number)
    first = stack.pop(binned_gaussian(REACH), mean, stddev)
    second = stack.pop(bernoulli(), p)
    third = stack.pop(categorical(), table)
    untouched = stack.untouched
    assert (stack.words()[:untouched] == initial.content()[:untouched]).all()
    stack.push(third, categorical(), table)
    stack.push(second, bernoulli(), p)
    stack.push(first, binned_gaussian(REACH), mean, stddev)
    assert (stack.words() == initial.content()).all()
    assert stack.untouched == untouched < len(initial.content())
