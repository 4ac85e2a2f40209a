"""Optuna's TPE sampler: points that follow from what earlier ones have given. The only importer of optuna here."""

import warnings
from typing import Any

import optuna
from optuna.trial import TrialState

from attvae.search.config import Dimension
from attvae.search.space import Point, Space, suggest


class Tpe:
    """A study in memory. What is known of a sweep can be told again, in any order."""

    def __init__(self, space: Space, seed: int) -> None:
        """
        Args:
            seed: another one for each continuation of a sweep, or it would propose the same points again.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():  # constant_liar is called experimental since 2021
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # As if running trials were bad: those at the same time are kept apart.
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, constant_liar=True)
        self._space = space
        self._study = optuna.create_study(sampler=sampler)
        self._trials: dict[str, optuna.Trial] = {}

    def propose(self, trial_id: str) -> Point:
        self._trials[trial_id] = self._study.ask()
        return suggest(self._space, self._trials[trial_id])

    def begin(self, trial_id: str, point: Point) -> None:
        """A trial whose point was not proposed here."""
        self._study.enqueue_trial({key: _stored(value, self._space[key]) for key, value in point.items()})
        assert self.propose(trial_id) == point, f"{point} is not of the space"

    def report(self, trial_id: str, samples_seen: int, value: float) -> None:
        """A figure on the way."""
        self._trials[trial_id].report(value, samples_seen)

    def end(self, trial_id: str, value: float | None, *, stopped: bool = False) -> None:
        """
        Args:
            value: the last figure; None for a trial that has failed.
            stopped: before its time: the figures on the way count, and less.
        """
        state = TrialState.FAIL if value is None else TrialState.PRUNED if stopped else TrialState.COMPLETE
        self._study.tell(self._trials.pop(trial_id), value if state is TrialState.COMPLETE else None, state=state)


def _stored(value: Any, dimension: Dimension) -> Any:
    """As `suggest` asks for it: a choice that optuna cannot store is named by its position."""
    storable = all(isinstance(choice, None | bool | int | float | str) for choice in dimension.choice or ())
    return value if storable else (dimension.choice or []).index(value)
