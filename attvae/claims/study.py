"""The study file: which models are trained, on what, how long and how often. Pure: nothing is run here."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import yaml
from pydantic import BeforeValidator, Field, model_validator

from attvae.config import RunConfig, flatten, load, located, read_mapping, validated
from attvae.spec import Config

WITHIN = 0.02
"""The largest and the smallest number of parameters of a set differ by at most this part of the smallest."""


def _dotted(given: Any) -> Any:
    return flatten(given) if isinstance(given, Mapping) else given


Overrides = Annotated[dict[str, Any], BeforeValidator(_dotted)]
"""Dotted keys and their values; written as a tree they are the same."""


class Depth(Config):
    """The models of one number of layers."""

    layers: int = Field(gt=0, description="latent layers")
    samples: int = Field(gt=0, description="train.samples of each of them")
    widths: dict[str, tuple[int, int]] = Field(
        min_length=1,
        description="encoder_filters and decoder_filters of each variant, at which all have as many parameters",
    )


class CellSet(Config):
    """Models that are compared with each other."""

    about: str = Field(description="what is compared, and why")
    full: bool = Field(False, description="run with --full only")
    base: Path | None = Field(
        None, description="a configuration in the place of the study's, whose overrides and of_samples it goes without"
    )
    overrides: Overrides = Field({}, description="keys that are other than in the base")
    depths: list[Depth] = Field(min_length=1, description="the numbers of layers that are tried")


class Study(Config):
    """One study, in full. Lengths are counted in samples seen."""

    name: str = Field(pattern=r"^[\w.-]+$", description="by default the file's stem")
    about: str = Field(description="what is studied, for the head of the page")
    chosen_on: str = Field(description="on what the settings were chosen, for the head of the page")
    limits: str = Field(description="what it cannot show, for the head of the page")
    base: Path = Field(description="the configuration of all runs, relative to this file")
    overrides: Overrides = Field({}, description="keys that are other than in the base, in all runs")
    of_samples: dict[str, float] = Field(
        {}, description="keys that are a part of train.samples, such as train.kl_warmup: 0.2"
    )
    variants: dict[str, dict[str, Any]] = Field(
        description="what each variant of the model overrides; `none` is the baseline and `both` the paper's model"
    )
    sets: dict[str, CellSet] = Field(min_length=1, description="what is compared, by name")
    seeds: list[int] = Field(min_length=1, description="of the trainings; each model is trained with each")
    importance_samples: int = Field(100, gt=0, description="K of the importance-weighted bound")
    parallel: int = Field(1, gt=0, description="runs at a time, without a cluster")
    threads: int = Field(1, gt=0, description="processors of a run")
    gpus: int = Field(0, ge=0, description="GPUs of a run, 0 or 1")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if missing := [name for name in ("none", "both") if name not in self.variants]:
            raise ValueError(f"variants lacks {missing[0]}: `none` is the baseline, `both` the paper's model")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds} names a seed twice")
        if self.gpus > 1:
            raise ValueError(f"gpus={self.gpus}: a run of a study has one GPU or none")
        for name, each in self.sets.items():
            layers = [depth.layers for depth in each.depths]
            if len(set(layers)) < len(layers):
                raise ValueError(f"sets.{name}: depths={layers} names a number of layers twice")
            if not re.fullmatch(r"[\w.-]+", name):
                raise ValueError(f"sets.{name}: a set's name has letters, digits, _, . and - alone")
            for depth in each.depths:
                if unknown := sorted(depth.widths.keys() - self.variants.keys()):
                    known = ", ".join(self.variants)
                    raise ValueError(f"sets.{name}: {unknown[0]} is no variant; known are {known}")
        return self

    def cells(self) -> Iterator["Cell"]:
        """All runs, those of a seed one after the other: an interrupted study has whole seeds.

        With each seed the variants begin with another one, so that those that run side by side change.
        """
        for name, each in self.sets.items():
            for turn, seed in enumerate(self.seeds):
                for depth in each.depths:
                    first = turn % len(depth.widths)
                    variants = [*depth.widths][first:] + [*depth.widths][:first]
                    yield from (Cell(name, depth.layers, variant, seed, depth.samples) for variant in variants)

    def overrides_of(self, cell: "Cell") -> list[str]:
        """What its run's command says after the configuration."""
        of_set = self.sets[cell.set]
        encoder_filters, decoder_filters = next(
            depth.widths[cell.variant]
            for depth in of_set.depths
            if depth.layers == cell.layers and cell.variant in depth.widths
        )
        of_study = {} if of_set.base else self.overrides
        schedules = {} if of_set.base else {key: round(part * cell.samples) for key, part in self.of_samples.items()}
        keys = {
            **of_study,
            **of_set.overrides,
            "model.num_layers": cell.layers,
            "model.encoder_filters": encoder_filters,
            "model.decoder_filters": decoder_filters,
            "seed": cell.seed,
            "train.samples": cell.samples,
            **schedules,
            **self.variants[cell.variant],
            "tracking.run_name": cell.id,
            "tracking.tags": {"study": self.name, "set": cell.set, "variant": cell.variant},
        }
        return [f"{key}={_as_yaml(value)}" for key, value in keys.items()]

    def base_of(self, cell: "Cell") -> Path:
        return self.sets[cell.set].base or self.base

    def config_of(self, cell: "Cell") -> RunConfig:
        """
        Raises:
            ValueError: the base cannot be read, or the cell is no valid run.
        """
        return load(self.base_of(cell), self.overrides_of(cell))


class Cell(NamedTuple):
    """One run of a study."""

    set: str
    layers: int
    variant: str
    seed: int
    samples: int

    @property
    def id(self) -> str:
        """Also its folder, within that of the study."""
        return f"{self.set}/{self.layers:02d}_{self.variant}_seed-{self.seed}"


def load_study(path: Path) -> Study:
    """Reads and validates the file; the cells' configurations are not yet looked at (`check`).

    Raises:
        ValueError: names the key, what was found, and what to do.
    """
    path = located(path)
    tree: dict[str, Any] = {"name": path.stem, **read_mapping(path)}
    sets = tree.get("sets")
    for node in (tree, *(sets.values() if isinstance(sets, dict) else ())):
        if isinstance(node, dict) and isinstance(node.get("base"), str):
            node["base"] = os.path.normpath(path.parent / node["base"])
    return validated(Study, tree, path)


def check(study: Study, parameters: Mapping["Cell", int]) -> None:
    """Holds the models of each set against each other.

    Args:
        parameters: of each cell's model, of those sets that are asked for.

    Raises:
        ValueError: two models of a set, which are compared, have not as many parameters.
    """
    for name in study.sets:
        counts = {cell: count for cell, count in parameters.items() if cell.set == name}
        if not counts:
            continue
        least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        if counts[most] > (1 + WITHIN) * counts[least]:
            raise ValueError(
                f"sets.{name}: {most.layers} layers, {most.variant} has {counts[most]:,} parameters, "
                f"{least.layers} layers, {least.variant} {counts[least]:,}, more than {WITHIN:.0%} apart: "
                "choose other widths"
            )


def _as_yaml(value: Any) -> str:
    """On one line, as an override says it."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
