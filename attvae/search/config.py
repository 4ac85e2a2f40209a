"""The search file: what is searched, how far, by whom, and what a trial takes."""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from attvae.config import apply_override, explain, flatten, located, read_mapping, validated
from attvae.spec import Config

METRICS = ("val/nelbo_nats", "val/bits_per_dim", "val/nll_nats", "val/kl_nats")
"""What a run reports of the validation images with EMA weights; of all of them less is better."""

STARTUP_TRIALS = 10
"""So many trials of the optuna searcher are drawn at random before its model of the results decides."""

LARGEST_GRID = 100_000

_KINDS = ("choice", "uniform", "loguniform", "int")

_IntegerBounds = tuple[int, int]


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text, and so does what reads it here."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value) else value


class Dimension(Config):
    """The values that one key of a run's configuration may take. Bounds are part of the range."""

    choice: list[Any] | None = Field(None, description="any of these")
    uniform: tuple[float, float] | None = Field(None, description="a real number between two bounds")
    loguniform: tuple[float, float] | None = Field(None, description="the same, evenly by its logarithm")
    int: _IntegerBounds | None = Field(None, description="an integer between two bounds")
    when: dict[str, Any] = Field({}, description="values of other keys of the space with which this one is searched")

    @field_validator("choice", "when", mode="before")
    @classmethod
    def _numbers(cls, given: Any) -> Any:
        if isinstance(given, Mapping):
            return {key: _number(value) for key, value in given.items()}
        return [_number(value) for value in given] if isinstance(given, list) else given

    @model_validator(mode="after")
    def _one_kind_not_empty(self) -> Self:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(_KINDS)}, found {' and '.join(given) or 'none of them'}")
        if self.choice is not None:
            if not self.choice:
                raise ValueError("choice=[] is empty: name at least one value")
            if len({repr(value) for value in self.choice}) < len(self.choice):
                raise ValueError(f"choice={self.choice} names a value twice: name each once")
            return self
        low, high = self.bounds
        if low >= high:
            raise ValueError(f"{self.kind}=[{low}, {high}] is empty: the first bound must be below the second")
        if self.loguniform and low <= 0:
            raise ValueError(f"loguniform=[{low}, {high}]: both bounds must be above 0; or use uniform")
        return self

    @property
    def kind(self) -> Literal["choice", "uniform", "loguniform", "int"]:
        if self.choice is not None:
            return "choice"
        return "uniform" if self.uniform else "loguniform" if self.loguniform else "int"

    @property
    def bounds(self) -> tuple[float, float]:
        """Of a range; integers where the values are."""
        found = self.uniform or self.loguniform or self.int
        assert found is not None, "a choice has no bounds"
        return found


class NoScheduler(Config):
    """Every trial gets the whole budget."""

    kind: Literal["none"] = Field("none", description="no trial is stopped early")


class Asha(Config):
    """Asynchronous successive halving: at each rung only the best 1 / factor go on."""

    kind: Literal["asha"] = Field("asha", description="ASHA")
    first_rung: int = Field(gt=0, description="samples seen; the next rungs are at factor times the one before")
    factor: float = Field(3, gt=1, description="between two rungs, and of the trials that go on")


class MedianStopping(Config):
    """Stops a trial that is worse than the median of the others at the same number of samples seen."""

    kind: Literal["median"] = Field("median", description="median stopping")
    grace: int = Field(gt=0, description="samples seen before any trial is stopped")
    min_trials: int = Field(3, gt=0, description="results that a median needs")


class Pbt(Config):
    """Population based training: the worst go on from the best one's checkpoint, with other hyperparameters."""

    kind: Literal["pbt"] = Field("pbt", description="PBT")
    every: int = Field(gt=0, description="samples seen between two looks at the population")
    quantile: float = Field(0.25, gt=0, le=0.5, description="share of the population that is replaced")
    resample: float = Field(0.25, ge=0, le=1, description="probability to draw a key anew instead of moving it")


class SearchConfig(Config):
    """One sweep, in full. Lengths are counted in samples seen."""

    name: str = Field(pattern=r"^[\w.-]+$", description="by default the file's stem")
    base: Path = Field(description="the configuration that is searched around, relative to this file")
    overrides: dict[str, Any] = Field({}, description="keys that are other than in the base, in trials and best.yaml")
    for_trials: dict[str, Any] = Field({}, description="keys that only the trials have, such as eval.every")
    space: dict[str, Dimension] = Field(description="keys of the configuration that are searched, and their values")
    metric: str = Field("val/nelbo_nats", description=f"what is made small: {', '.join(METRICS)}")
    samples: int = Field(gt=0, description="train.samples of a trial that is not stopped")
    best_samples: int | None = Field(None, gt=0, description="train.samples of best.yaml; null: the base's")
    scheduler: NoScheduler | Asha | MedianStopping | Pbt = Field(
        NoScheduler(), discriminator="kind", description="who stops trials early"
    )
    searcher: Literal["optuna", "random", "grid"] = Field("optuna", description="who chooses points; optuna: TPE")
    trials: int | None = Field(None, gt=0, description="null with the grid only: all its points")
    parallel: int = Field(1, gt=0, description="trials at a time")
    ranks: int = Field(1, gt=0, description="of a trial")
    nodes: int = Field(1, gt=0, description="machines over which a trial's ranks are spread evenly")
    cpus_per_rank: float = Field(1.0, gt=0, description="that Ray sets aside")
    gpus_per_rank: float = Field(0.0, ge=0, description="that Ray sets aside; a part where trials share a GPU")
    retries: int = Field(2, ge=0, description="of a trial whose worker or machine died")
    seed: int = Field(0, ge=0, lt=2**31, description="of what is tried; the trainings have the base's")

    @field_validator("overrides", "for_trials", mode="before")
    @classmethod
    def _dotted(cls, given: Any) -> Any:
        return flatten(given) if isinstance(given, Mapping) else given

    @field_validator("space", mode="before")
    @classmethod
    def _dimensions(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or not given:
            raise ValueError(f"{given!r}: name at least one key, such as train.lr: {{loguniform: [1.0e-3, 1.0e-2]}}")
        found, problems = {}, []
        for key, node in _leaves(given, ""):
            if not isinstance(node, Mapping):
                problems.append(f"{key}: {node!r} is no range: say {{choice: [...]}}, or uniform, loguniform or int")
                continue
            try:
                found[key] = Dimension.model_validate(node)
            except ValidationError as error:
                problems += [f"{key}: {explain(problem, Dimension)}" for problem in error.errors()]
        if problems:
            raise ValueError("; ".join(problems))
        return found

    @field_validator("metric")
    @classmethod
    def _reported_and_not_of_the_test_images(cls, metric: str) -> str:
        known = ", ".join(METRICS)
        if metric.startswith("test/"):
            raise ValueError(f"{metric}: nothing is chosen by the test images; take one of {known}")
        if metric not in METRICS:
            raise ValueError(f"{metric} is not what every trial reports of the validation images: {known}")
        return metric

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        for name in ("overrides", "for_trials"):
            if twice := sorted(self.space.keys() & getattr(self, name).keys()):
                raise ValueError(f"{twice[0]} is in space and in {name}: remove one of them")
        if self.searcher != "grid" and self.trials is None:
            raise ValueError("trials is missing: say how many; only searcher=grid knows it by itself")
        if self.searcher == "grid" and self.trials is not None:
            raise ValueError(f"searcher=grid tries every point of the space: trials={self.trials} must go (null)")
        endless = [key for key, dimension in self.space.items() if dimension.kind in ("uniform", "loguniform")]
        points = math.prod(
            len(each.choice) if each.choice else each.bounds[1] - each.bounds[0] + 1 for each in self.space.values()
        )
        if self.searcher == "grid" and not endless and points > LARGEST_GRID:
            raise ValueError(f"searcher=grid has {points:,.0f} points: at most {LARGEST_GRID:,}, or searcher=random")
        if self.searcher == "grid" and endless:
            raise ValueError(f"searcher=grid needs choice or int for every key, {endless[0]} is a range of reals")
        if self.ranks % self.nodes:
            raise ValueError(f"ranks={self.ranks} cannot be spread evenly over nodes={self.nodes}")
        if self.gpus_per_rank % 1 and self.ranks > self.nodes:
            raise ValueError(
                f"gpus_per_rank={self.gpus_per_rank} lets the ranks of a trial share a GPU, which NCCL does not allow: "
                "give whole GPUs, or one rank a machine"
            )
        match self.scheduler:
            case Asha(first_rung=first) if first >= self.samples:
                raise ValueError(
                    f"scheduler.first_rung={first} is not below samples={self.samples}: nothing would stop"
                )
            case MedianStopping(grace=first) if first >= self.samples:
                raise ValueError(f"scheduler.grace={first} is not below samples={self.samples}: nothing would stop")
            case Pbt(every=every) if every >= self.samples:
                raise ValueError(f"scheduler.every={every} is not below samples={self.samples}: nothing would change")
            case Pbt() if self.searcher != "random":
                raise ValueError(
                    f"scheduler pbt changes the keys by itself, searcher={self.searcher} cannot: use random"
                )
            case Pbt() if self.parallel != self.trials:
                raise ValueError(
                    f"scheduler pbt trains its whole population side by side, and as many at a time as Ray has room "
                    f"for: parallel={self.parallel} must be trials={self.trials}"
                )
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_search(path: Path, overrides: Sequence[str] = ()) -> SearchConfig:
    """Reads, overrides and validates; the space is not yet held against the base (attvae.search.space.check).

    Raises:
        ValueError: names the key, what was found, and what to do.
    """
    path = located(path)
    tree: dict[str, Any] = {"name": path.stem}
    for key, value in read_mapping(path).items():
        if key == "base" and isinstance(value, str):
            value = os.path.normpath(path.parent / value)
        tree[key] = _nested(value) if key in ("space", "overrides", "for_trials") else value
    for override in overrides:
        apply_override(tree, override)
    return validated(SearchConfig, tree, path)


def _nested(tree: Any) -> Any:
    """{"a.b": 1} -> {"a": {"b": 1}}, so that an override on the command line finds the key; `when` stays."""
    if not isinstance(tree, Mapping):
        return tree
    nested: dict[str, Any] = {}
    for key, value in tree.items():
        *parents, leaf = str(key).split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value if leaf == "when" else _nested(value)
    return nested


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, what is said of it)"""
    for key, node in tree.items():
        if isinstance(node, Mapping) and node and not node.keys() & {*_KINDS, "when"}:
            yield from _leaves(node, f"{prefix}{key}.")
        else:
            yield prefix + key, node
