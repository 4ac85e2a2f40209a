"""Where the numbers of a chart lie, and which of them are written at its edge."""

import math
from collections.abc import Iterable
from typing import NamedTuple

_WIDE = 20.0
"""Positive numbers whose largest is so many times the smallest are shown by their logarithm."""


class Axis(NamedTuple):
    """From `low` to `high`, with (number, label) at each of `ticks`."""

    low: float
    high: float
    logarithmic: bool
    ticks: list[tuple[float, str]]

    def place(self, number: float) -> float:
        """0 at `low`, 1 at `high`; what is far outside lies at -9 or 9."""
        low, high = self.low, self.high
        if self.logarithmic:
            if number <= 0:
                return -9.0
            number, low, high = math.log(number), math.log(low), math.log(high)
        return min(max((number - low) / (high - low), -9.0), 9.0)


def from_zero(high: float, unit: float = 1.0) -> Axis:
    """From 0 to `high`, labelled in units of so much."""
    high = high if high > 0 else unit
    return Axis(0.0, high, False, [(number * unit, label) for number, label in _round_numbers(0.0, high / unit)])


def around(numbers: Iterable[float]) -> Axis:
    """Holds all the numbers, which are finite, with a little room; logarithmic where they differ in order."""
    numbers = list(numbers)
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    if low > 0 and high / low > _WIDE:
        low, high = low / 1.1, high * 1.1
        return Axis(low, high, True, _powers(low, high))
    size = max(abs(low), abs(high))
    room = 0.05 * (high - low) if high - low > 1e-6 * size else 0.1 * size or 1.0
    low, high = low - room, high + room
    return Axis(low, high, False, _round_numbers(low, high))


def _round_numbers(low: float, high: float) -> list[tuple[float, str]]:
    """Three to six multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(i * step, _label(i * step, step)) for i in range(first, last + 1)]


def _powers(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten, no more than six; 2 and 5 times them too where they are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    between = (1, 2, 5) if len(powers) <= 4 else (1,)
    every = math.ceil(len(powers) / 6)
    numbers = [times * 10.0**power for power in powers[::every] for times in between]
    return [(number, _label(number, number)) for number in numbers if low <= number <= high]


def _label(number: float, step: float) -> str:
    if number == 0:
        return "0"
    if step < 1e-4 or step >= 1e12:
        return f"{number:.{max(0, math.floor(math.log10(abs(number))) - math.floor(math.log10(step)))}e}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 10 * size or (abs(number) >= size and step >= size / 10):
            return f"{number / size:.{_decimals(step / size)}f}{letter}"
    return f"{number:.{_decimals(step)}f}"


def _decimals(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9))
