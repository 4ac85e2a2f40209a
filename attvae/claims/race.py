"""How long a model trains until its validation NELBO is as low as another's: samples and seconds, from curves."""

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import numpy as np

from attvae.claims.results import Done


class Race(NamedTuple):
    """How far each side trains until its mean validation NELBO is first at the target."""

    target_nats: float
    samples: tuple[float, float]
    """Of the baseline and of the attentive model."""
    seconds: tuple[float, float]

    @property
    def samples_ratio(self) -> float:
        return self.samples[0] / self.samples[1]

    @property
    def seconds_ratio(self) -> float:
        return self.seconds[0] / self.seconds[1]


def race(baseline: Sequence[Done], attentive: Sequence[Done]) -> Race:
    """The target is the worse one of the two final mean NELBOs, so that both reach it."""
    sides = (baseline, attentive)
    curves = [mean_curve(side) for side in sides]
    target = max(float(nelbo[-1]) for _, nelbo in curves)
    first, second = (first_at(target, *curve) for curve in curves)
    return Race(target, (first, second), (first * s_per_image(baseline), second * s_per_image(attentive)))


def s_per_image(cells: Sequence[Done]) -> float:
    """Of training, mean over trainings."""
    return fmean(cell.training.s_per_image for cell in cells)


def mean_curve(cells: Sequence[Done]) -> tuple[np.ndarray, np.ndarray]:
    """Samples seen and mean validation NELBO in nats, linear between evaluations, as far as all cells have one."""
    curves = [np.array(cell.curve, dtype=float).T for cell in cells]
    first, last = max(each[0, 0] for each in curves), min(each[0, -1] for each in curves)
    samples = np.unique(np.concatenate([each[0] for each in curves]))
    samples = samples[(samples >= first) & (samples <= last)]
    return samples, np.mean([np.interp(samples, *each) for each in curves], axis=0)


def first_at(target: float, samples: np.ndarray, nelbo: np.ndarray) -> float:
    """The samples, one at least, after which a curve that is linear between its points is first at `target` or less."""
    assert nelbo[-1] <= target, "a target lies at the curve's end or before"
    i = int(np.argmax(nelbo <= target))
    if i == 0:
        return max(1.0, float(samples[0]))
    share = (nelbo[i - 1] - target) / (nelbo[i - 1] - nelbo[i])
    return float(samples[i - 1] + share * (samples[i] - samples[i - 1]))
