"""The space of a search: held against the configuration tree, sampled, and turned into runs. Pure but for files."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import yaml

from attvae.config import RunConfig, load
from attvae.search.config import STARTUP_TRIALS, Asha, Dimension, MedianStopping, Pbt, SearchConfig

Point = dict[str, Any]
"""Dotted keys and their values: what tells a trial from the base. Keys whose `when` does not hold are absent."""

Space = Mapping[str, Dimension]

_OURS = ("train.samples", "resume", "init_from", "tracking", "checkpoint", "eval")
"""What a sweep itself sets or relies on, or measures with."""

_CHANGEABLE = ("train.", "optim.")
_FIXED_BY_THE_WEIGHTS = ("train.global_batch", "train.published_schedule", "optim.name", "optim.fused")
"""What a running training can change its mind about, for PBT: weights, optimizer states and data order stay."""


class OptunaTrial(Protocol):
    """The part of `optuna.Trial` that names a point."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...
    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_int(self, name: str, low: int, high: int) -> int: ...


def trial_config(search: SearchConfig, point: Point) -> RunConfig:
    """The run that is a trial.

    Raises:
        ValueError: the values do not make a configuration.
    """
    return _load(search, {**search.overrides, **search.for_trials, "train.samples": search.samples, **point})


def best_config(search: SearchConfig, point: Point) -> RunConfig:
    """The run in full that a trial has stood for.

    Raises:
        ValueError: as `trial_config`.
    """
    full = {"train.samples": search.best_samples} if search.best_samples else {}
    return _load(search, {**search.overrides, **full, **point})


def random_point(space: Space, seed: int, index: int) -> Point:
    """The point of this index: the same for the same seed, whatever was drawn before."""
    point: Point = {}
    for key, dimension in _parents_first(space):
        if holds(dimension, point):
            # One stream for each key, so that keys can be added without changing what the others draw.
            point[key] = _drawn(dimension, random.Random(f"{seed}/{index}/{key}"))
    return _in_order(space, point)


def grid(space: Space) -> list[Point]:
    """Every combination of choices and integers, once."""
    points: list[Point] = [{}]
    for key, dimension in _parents_first(space):
        values = _values(dimension)
        points = [
            extended
            for point in points
            for extended in ([{**point, key: value} for value in values] if holds(dimension, point) else [point])
        ]
    return [_in_order(space, point) for point in points]


def suggest(space: Space, trial: OptunaTrial) -> Point:
    """The point that optuna's sampler chooses. Choices that optuna cannot store are named by their position."""
    point: Point = {}
    for key, dimension in _parents_first(space):
        if holds(dimension, point):
            point[key] = _suggested(key, dimension, trial)
    return _in_order(space, point)


def planned_trials(search: SearchConfig) -> int:
    return search.trials or len(grid(search.space))


def first_points(search: SearchConfig) -> list[Point]:
    """What is known before any result: all points of the grid and of random search, optuna's first ones."""
    if search.searcher == "grid":
        return grid(search.space)
    known = min(planned_trials(search), STARTUP_TRIALS) if search.searcher == "optuna" else planned_trials(search)
    return [random_point(search.space, search.seed, index) for index in range(known)]


def holds(dimension: Dimension, point: Point) -> bool:
    """Whether the keys that a dimension depends on have the values that it is for."""
    return all(key in point and point[key] == value for key, value in dimension.when.items())


def check(search: SearchConfig, *, data_needed: bool = True) -> None:
    """Holds every key, bound and choice against the configuration tree, the ranks, and the data if they are there.

    Raises:
        ValueError: names the key of the space, the value, and what is wrong with it.
    """
    base = trial_config(search, {})
    _check_intervals(search, base)
    _check_conditions(search.space)
    for key in search.space:
        if any(key == ours or key.startswith(f"{ours}.") for ours in _OURS):
            raise ValueError(f"space.{key}: a sweep sets this itself, or relies on it: search another key")
        if isinstance(search.scheduler, Pbt) and search.space[key].when:
            raise ValueError(
                f"space.{key}: pbt changes every key by itself, and cannot heed when: leave it out, or use another "
                "scheduler"
            )
        fixed = not key.startswith(_CHANGEABLE) or key.startswith(_FIXED_BY_THE_WEIGHTS)
        if isinstance(search.scheduler, Pbt) and fixed:
            raise ValueError(
                f"space.{key}: pbt changes keys of a training that goes on, and this one cannot be changed then; "
                "search train.* or optim.* keys, or use another scheduler"
            )
    configs = [("the base", base)]
    for key, dimension in _parents_first(search.space):
        for value in _corners(dimension):
            where = f"space.{key}: {value!r}"
            try:
                configs.append((where, _checked(search, {**_needed(search.space, key), key: value}, where)))
            except ValueError as error:
                remedy = "; use int: [low, high]" if "got a number with a fractional part" in str(error) else ""
                raise ValueError(f"{error}{remedy}") from None
    for index, point in enumerate(first_points(search)):
        where = f"trial {index} ({describe(point)})"
        configs.append((where, _checked(search, point, where)))
    _check_plans(search, configs, data_needed)


def describe(point: Point) -> str:
    """train.lr=0.00123, ..."""
    return ", ".join(f"{key}={format_value(value)}" for key, value in point.items())


def format_value(value: Any) -> str:
    """On one line, numbers rounded to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())


# ------------------------------------------------------------------------------------------------------------ sampling


def _drawn(dimension: Dimension, stream: random.Random) -> Any:
    if dimension.choice is not None:
        return stream.choice(dimension.choice)
    if dimension.int is not None:
        return stream.randint(*dimension.int)
    low, high = dimension.bounds
    if dimension.kind == "loguniform":
        return min(max(math.exp(stream.uniform(math.log(low), math.log(high))), low), high)
    return stream.uniform(low, high)


def _values(dimension: Dimension) -> Sequence[Any]:
    if dimension.choice is not None:
        return dimension.choice
    assert dimension.int is not None, "SearchConfig lets no other into a grid"
    low, high = dimension.int
    return range(low, high + 1)


def _suggested(key: str, dimension: Dimension, trial: OptunaTrial) -> Any:
    match dimension.kind:
        case "choice":
            choices = dimension.choice or []
            if all(isinstance(value, None | bool | int | float | str) for value in choices):
                return trial.suggest_categorical(key, choices)
            return choices[trial.suggest_categorical(key, range(len(choices)))]
        case "int":
            first, last = dimension.int or (0, 0)
            return trial.suggest_int(key, first, last)
        case kind:
            low, high = dimension.bounds
            return trial.suggest_float(key, low, high, log=kind == "loguniform")


def _parents_first(space: Space) -> Iterator[tuple[str, Dimension]]:
    """Keys after those that their `when` names."""
    left, done = dict(space), set[str]()
    while left:
        ready = [key for key, dimension in left.items() if dimension.when.keys() & space.keys() <= done]
        if not ready:
            raise ValueError(f"space: the conditions (when) of {', '.join(left)} depend on each other in a circle")
        for key in ready:
            yield key, left.pop(key)
        done.update(ready)


def _in_order(space: Space, point: Point) -> Point:
    return {key: point[key] for key in space if key in point}


# ------------------------------------------------------------------------------------------------------------ checking


def _load(search: SearchConfig, values: Mapping[str, Any]) -> RunConfig:
    return load(
        search.base, [f"{key}={yaml.safe_dump(value, default_flow_style=True)}" for key, value in values.items()]
    )


def _checked(search: SearchConfig, point: Point, where: str) -> RunConfig:
    try:
        cfg = trial_config(search, point)
        best_config(search, point)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return cfg


def _corners(dimension: Dimension) -> Sequence[Any]:
    """What stands for all the values: every choice; of a range its bounds, and of the reals one between them."""
    if dimension.choice is not None:
        return dimension.choice
    low, high = dimension.bounds
    return [low, high] if dimension.kind == "int" else [low, low + (high - low) / math.e, high]


def _needed(space: Space, key: str) -> Point:
    """What makes a key's `when` hold, and the parents' in turn."""
    point: Point = {}
    for parent, value in space[key].when.items():
        point |= {**_needed(space, parent), parent: value}
    return point


def _check_conditions(space: Space) -> None:
    for key, dimension in space.items():
        for parent, value in dimension.when.items():
            if parent not in space:
                raise ValueError(f"space.{key}: when names {parent}, which is not in the space: {', '.join(space)}")
            choices = space[parent].choice
            if choices is None or value not in choices:
                known = f"its choices are {choices}" if choices else "it has no choices"
                raise ValueError(f"space.{key}: when {parent}={value!r} never holds: {known}")
    list(_parents_first(space))


def _check_intervals(search: SearchConfig, base: RunConfig) -> None:
    every = base.eval.every
    remedy = f"set for_trials.eval.every below it, or raise it; eval.every={every}"
    if search.samples < every:
        raise ValueError(f"samples={search.samples} ends before the first evaluation: {remedy}")
    match search.scheduler:
        case Asha(first_rung=first) if first < every:
            raise ValueError(f"scheduler.first_rung={first} comes before the first evaluation: {remedy}")
        case MedianStopping(grace=first) if first < every:
            raise ValueError(f"scheduler.grace={first} comes before the first evaluation: {remedy}")
        case Pbt(every=first) if first < every:
            raise ValueError(f"scheduler.every={first} comes before the first evaluation: {remedy}")


def _check_plans(search: SearchConfig, configs: Sequence[tuple[str, RunConfig]], data_needed: bool) -> None:
    """Of each model, batch, engine and data set that occurs: do the ranks divide it, does it fit the data?"""
    from attvae.train import plan

    seen = set()
    for where, cfg in configs:
        parts = {"model", "data", "engine"}
        planned = cfg.model_dump_json(include=parts) + str(cfg.train.global_batch)
        if planned in seen:
            continue
        seen.add(planned)
        try:
            plan(cfg, search.ranks, data_needed=data_needed)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
