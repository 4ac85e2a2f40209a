"""What a study has found, as its JSON holds it: checked, and asked for by set, depth and variant."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

BASELINE = "none"
"""The variant without depth-wise attention."""
ATTENTIVE = "both"
"""The paper's: attention in the generative and in the inference path."""

DEPTH = "depth"
"""The set of cells that the verdicts are about."""
EQUAL_TIME = "equal_time"
"""The set of baselines that train as long as the attentive model of the same depth in DEPTH."""
PHOTOGRAPHS = "photographs"
"""The set on other images: its likelihoods are in bits per dimension."""

REMEDY = "remove its cell.json in the study's folder, and the same command runs it again"
"""Of a cell whose row is no result."""

Unit = Literal["nats", "bits/dim"]


class Estimate(BaseModel):
    """A mean over images, and its standard error over them; a single image has none."""

    value: float
    standard_error: float | None = None


class Test(BaseModel):
    nelbo_nats: Estimate
    iw_nll_nats: Estimate
    bits_per_dim: Estimate
    kl_nats_per_layer: list[float]
    images: int


class Nelbo(BaseModel):
    nelbo_nats: float


class Training(BaseModel):
    wall_s: float
    s_per_image: float
    """Without evaluations and other stops."""


class Sampling(BaseModel):
    s_per_image: float


class Machine(BaseModel):
    processor: str
    device: str
    cpus: int
    torch: str
    python: str


class AttendingLayer(BaseModel):
    """α(m→l) of layer l over the contexts m that it attends to, and figures of attvae.evaluation.depth_attention."""

    layer: int
    attended: list[int]
    probabilities: list[float]
    relative_entropy: float | None
    effective_contexts: float
    share_beyond_nearest: float

    @property
    def others(self) -> list[float]:
        """The probabilities of all contexts but the nearest one."""
        nearest = min(self.attended, key=lambda m: abs(self.layer - m))
        return [p for m, p in zip(self.attended, self.probabilities, strict=True) if m != nearest]


class AttendingPath(BaseModel):
    gates: list[float]
    layers: list[AttendingLayer]

    @property
    def choosing(self) -> list[AttendingLayer]:
        """The layers with two or more contexts to attend to."""
        return [layer for layer in self.layers if layer.relative_entropy is not None]


class Cell(BaseModel):
    """One training of the study."""

    id: str
    set: str
    depth: int
    variant: str
    seed: int
    status: Literal["done", "failed", "missing"]
    reason: str | None = None


class Done(Cell):
    """A training that has ended, and what it has reached."""

    command: str
    samples: int
    importance_samples: int
    parameters: int
    commit: str | None
    dirty: bool | None
    machine: Machine
    started: str
    training: Training
    sampling: Sampling
    test: Test
    val: Nelbo
    test_without_attention: Nelbo | None = None
    validation_curve: list[tuple[int, float]] = Field(min_length=1)
    attention: dict[str, AttendingPath] = {}

    @model_validator(mode="after")
    def _figures_fit(self) -> Self:
        if len(found := self.test.kl_nats_per_layer) != self.depth:
            raise ValueError(f"kl_nats_per_layer has {len(found)} values for depth {self.depth}")
        if (found_s := self.training.s_per_image) <= 0:
            raise ValueError(f"training.s_per_image={found_s}: a training takes time")
        return self

    @property
    def top_half_kl_nats(self) -> list[float]:
        """KL of layers 0 to L/2 - 1 (rounded down, one at least): layer 0 is on top."""
        return self.test.kl_nats_per_layer[: max(1, self.depth // 2)]

    @property
    def curve(self) -> list[tuple[int, float]]:
        """Samples seen and validation NELBO in nats, as if each point were of as many draws as the final figure.

        While a run trains it draws each validation image once, with the same noise at each look: so it is off by nearly
        the same all along, and that is known at the end, where the final figure is of more draws.
        """
        off = self.validation_curve[-1][1] - self.val.nelbo_nats
        return [(samples, nats - off) for samples, nats in self.validation_curve]

    def per_nat(self, unit: Unit) -> float:
        """The factor that turns nats per image into `unit`."""
        return 1.0 if unit == "nats" else self.test.bits_per_dim.value / self.test.nelbo_nats.value

    def nelbo(self, unit: Unit) -> float:
        return self.test.nelbo_nats.value * self.per_nat(unit)


class SetOfCells(BaseModel):
    about: str
    full: bool = False


class Results(BaseModel):
    study: str
    about: str
    chosen_on: str
    limits: str
    command: str
    full: bool
    variants: list[str]
    sets: dict[str, SetOfCells]
    cells: list[Cell]

    def of(self, set_name: str, variant: str | None = None, depth: int | None = None) -> list[Cell]:
        return [
            cell
            for cell in self.cells
            if cell.set == set_name and variant in (None, cell.variant) and depth in (None, cell.depth)
        ]

    def asked(self) -> list[str]:
        """The sets that the study as it was started has to run."""
        return [name for name, each in self.sets.items() if self.full or not each.full]

    def counted(self) -> list[Cell]:
        """The cells of the sets that were asked for, and what there is of others from another time."""
        return [cell for cell in self.cells if cell.set in self.asked() or cell.status != "missing"]


class Stratum(NamedTuple):
    """Cells of one depth."""

    depth: int
    baseline: list[Done]
    attentive: list[Done]


def done(cells: Sequence[Cell]) -> list[Done]:
    return [cell for cell in cells if isinstance(cell, Done)]


def of_one_machine(cells: Sequence[Done]) -> bool:
    """Whether the seconds of these cells can be compared."""
    return len({(cell.machine.processor, cell.machine.device, cell.machine.cpus) for cell in cells}) <= 1


def strata(baseline: Sequence[Cell], attentive: Sequence[Cell]) -> list[Stratum]:
    """The depths at which both have ended cells."""
    found = []
    for depth in sorted({cell.depth for cell in baseline} & {cell.depth for cell in attentive}):
        sides = [done([cell for cell in side if cell.depth == depth]) for side in (baseline, attentive)]
        if all(sides):
            found.append(Stratum(depth, *sides))
    return found


def read_results(found: Mapping[str, Any]) -> Results:
    """Checks the JSON of a study. A cell with a figure that is not finite counts as failed, with that as the reason.

    Raises:
        ValueError: something is missing or of the wrong type, a cell is there twice, or of an unknown set or variant.
    """
    cells = [_cell(row) for row in found.get("cells", [])]
    try:
        results = Results.model_validate({**found, "cells": cells} if cells else found)
    except ValidationError as error:
        raise ValueError(f"results of study {found.get('study', '?')}: {_explained(error)}") from error
    for cell in cells:
        if cell.set not in results.sets:
            raise ValueError(f"cell {cell.id}: set {cell.set!r} is none of {', '.join(results.sets)}: {REMEDY}")
        if cell.variant not in results.variants:
            raise ValueError(
                f"cell {cell.id}: variant {cell.variant!r} is none of {', '.join(results.variants)}: {REMEDY}"
            )
    ids = [cell.id for cell in cells]
    places = [(cell.set, cell.depth, cell.variant, cell.seed) for cell in cells]
    for cell in cells:
        if ids.count(cell.id) > 1 or places.count((cell.set, cell.depth, cell.variant, cell.seed)) > 1:
            raise ValueError(f"cell {cell.id} is there twice: run each depth, variant and seed of a set once")
    return results


def _cell(row: Mapping[str, Any]) -> Cell:
    try:
        if row.get("status") != "done":
            return Cell.model_validate(row)
        cell = Done.model_validate(row)
    except ValidationError as error:
        raise ValueError(f"cell {row.get('id', '?')}: {_explained(error)}: {REMEDY}") from error
    if bad := next(not_finite(cell.model_dump()), None):
        return Cell.model_validate({**row, "status": "failed", "reason": f"{bad[0]} is {bad[1]}"})
    return cell


def _explained(error: ValidationError) -> str:
    places = [(".".join(map(str, each["loc"])), each["msg"].removeprefix("Value error, ")) for each in error.errors()]
    return "; ".join(f"{place}: {message}" if place else message for place, message in places)


def not_finite(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Name and value of each number that is none."""
    if isinstance(value, float) and not math.isfinite(value):
        yield name, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from not_finite(each, f"{name}.{key}" if name else key)
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from not_finite(each, f"{name}[{index}]")
