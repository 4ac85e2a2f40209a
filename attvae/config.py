"""RunConfig: the components' configurations composed into one typed, frozen tree.

A YAML file may name `base:` files (relative to itself), which come first; then the file; then dotted overrides
(`train.lr=3e-4`). Later values win, key by key.
"""

import difflib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from attvae.checkpoint_config import CheckpointConfig
from attvae.data.config import DataConfig
from attvae.engine.config import EngineConfig
from attvae.model.config import ModelConfig
from attvae.optim.config import OptimConfig
from attvae.spec import Config
from attvae.tracking.config import TrackingConfig

T = TypeVar("T", bound=BaseModel)


class PublishedSchedule(Config):
    """Learning rate and KL weight as in the authors' code: in epochs, the warm-up in steps."""

    epochs: int = Field(gt=0, description="of the whole training, the warm-up among them")
    warmup_epochs: int = Field(5, ge=0, description="in which the learning rate rises")
    restart_epochs: int | None = Field(None, gt=0, description="first period of cosine restarts; null: one cosine")
    kl_warmup_epochs: int = Field(16, ge=0, description="in which the weight of the KL rises to 1")


class TrainConfig(Config):
    """Lengths and intervals are counted in samples seen."""

    samples: int = Field(gt=0, description="samples to train on; rounded up to whole global batches")
    global_batch: int = Field(gt=0, description="images per update, over all ranks")
    lr: float = Field(gt=0, description="the highest learning rate")
    lr_floor: float = Field(0.0, ge=0, description="learning rate at the start of the warm-up and at the end")
    lr_warmup: int = Field(0, ge=0, description="samples in which the learning rate rises; then it falls as a cosine")
    kl_warmup: int = Field(0, ge=0, description="samples in which the weight of the KL rises to 1")
    kl_start: float = Field(0.1, ge=0, le=1, description="weight of the KL at the start of its warm-up")
    free_bits_nats: float = Field(0.0, ge=0, description="KL that each layer has for nothing (Kingma et al. 2016)")
    balance_kl: bool = Field(False, description="weigh the layers' KL during its warm-up (Vahdat & Kautz 2020)")
    published_schedule: PublishedSchedule | None = Field(None, description="instead of lr_warmup and kl_warmup")
    clip_norm: float | None = Field(None, gt=0, description="the gradient's 2-norm is scaled down to this; null: as is")
    spike_limit: float | None = Field(
        20.0, gt=1, description="an update is skipped if its gradient norm is above this many times the running one"
    )
    roll_back_after: int = Field(
        20, gt=0, description="skipped updates in a row after which the run goes back to its newest checkpoint, once"
    )
    log_every: int = Field(gt=0, description="samples between two log lines")

    @model_validator(mode="after")
    def _one_schedule(self) -> Self:
        if self.published_schedule and (self.lr_warmup or self.kl_warmup):
            raise ValueError(
                f"published_schedule excludes lr_warmup={self.lr_warmup} and kl_warmup={self.kl_warmup}: set them to 0"
            )
        return self


class EvalConfig(Config):
    """Validation during training, on EMA weights."""

    every: int = Field(gt=0, description="samples between two looks at the validation images")
    batch: int = Field(100, gt=0, description="images per forward pass and rank; does not change any figure")


class EvaluateConfig(Config):
    """The figures at the end of a run and of `attvae evaluate`."""

    binarisations: int = Field(20, gt=0, description="draws of each binary image that are averaged; else one")


class RunConfig(Config):
    """One run, in full."""

    seed: int = Field(0, ge=0, lt=2**63, description="of weights, data order, augmentation and latent noise")
    data: DataConfig
    model: ModelConfig
    train: TrainConfig
    optim: OptimConfig = OptimConfig()
    engine: EngineConfig = EngineConfig()
    eval: EvalConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig
    tracking: TrackingConfig = TrackingConfig()
    resume: Path | None = Field(None, description="a checkpoint folder to go on from, of a run of this configuration")
    init_from: Path | None = Field(None, description="a checkpoint folder whose EMA weights start this run")

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.resume and self.init_from:
            raise ValueError("resume and init_from exclude each other: set one of them")
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


MAY_CHANGE = (
    "engine",
    "optim.fused",
    "train.roll_back_after",
    "tracking",
    "checkpoint",
    "data.path",
    "data.dataset",
    "data.workers",
    "data.on_damage",
    "data.skip_limit",
    "data.cache",
    "data.cache_gb",
    "data.retry_s",
    "eval.batch",
    "resume",
)
"""Keys that a continued run may change: they do not change what is learnt."""


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads, composes, overrides and validates.

    Raises:
        ValueError: names the key, what was found, and what to do; for an unknown key its nearest neighbour.
    """
    tree = _read_composed(located(path), ())
    for override in overrides:
        apply_override(tree, override)
    return validated(RunConfig, tree, path)


def validated(root: type[T], tree: Mapping[str, Any], path: Path) -> T:
    """The tree that was read from `path` as a typed one.

    Raises:
        ValueError: as `load`.
    """
    try:
        return root.model_validate(tree)
    except ValidationError as error:
        problems = "\n".join(f"  {explain(problem, root)}" for problem in error.errors())
        raise ValueError(f"{path}: the configuration is not valid\n{problems}") from None


def differences(a: RunConfig, b: RunConfig) -> list[str]:
    """The keys, with both values, in which two runs differ in what they learn."""
    flat_a, flat_b = flatten(a.model_dump(mode="json")), flatten(b.model_dump(mode="json"))
    return [
        f"{key}: {flat_a.get(key)!r} there, {flat_b.get(key)!r} here"
        for key in sorted(flat_a.keys() | flat_b.keys())
        if flat_a.get(key) != flat_b.get(key) and not any(key == k or key.startswith(k + ".") for k in MAY_CHANGE)
    ]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def located(path: Path) -> Path:
    """The file itself; where there is none, the shipped one of that name: `configs/` comes with the package."""
    shipped = Path(__file__).parent.parent / path
    return shipped if not path.exists() and path.parts[:1] == ("configs",) and shipped.is_file() else path


def read_mapping(path: Path) -> dict[str, Any]:
    """What one YAML file says.

    Raises:
        ValueError: it cannot be read, or is no mapping.
    """
    try:
        own = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ValueError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    own = {} if own is None else own
    if not isinstance(own, dict):
        raise ValueError(f"{path}: a configuration is a mapping of keys to values, found {type(own).__name__}")
    return own


def _read_composed(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ValueError(f"{path}: base files include each other in a circle")
    own = read_mapping(path)
    bases = own.pop("base", [])
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f"{path}: base={bases!r}: name one file or a list of files")
    tree: dict[str, Any] = {}
    for base in bases:
        _merge(tree, _read_composed(path.parent / base, (*seen, path.resolve())))
    _merge(tree, own)
    return tree


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets what `dotted.key=value` says; the value is YAML.

    Raises:
        ValueError: the override is not of that form.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"{override!r} is not of the form key=value, such as train.lr=3e-4")
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if child is None:  # a part that is switched off, such as model.decoder_attention: null
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ValueError(f"{override!r}: {parent} is the value {child!r}, it has no keys below it")
        node = child
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{override!r}: the value is not valid YAML: {error}") from error


def explain(problem: Any, root: type[BaseModel]) -> str:
    """One of pydantic's errors about a tree of type `root`, as a user says it."""
    location = _without_tags([str(part) for part in problem["loc"]], root)
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        message = f"unknown key {key}"
        siblings = _keys_at(root, location[:-1])
        near = [".".join([*location[:-1], name]) for name in difflib.get_close_matches(location[-1], siblings, 1, 0.4)]
        elsewhere = [k for k in _all_keys(root) if k.split(".")[-1] == location[-1]]
        if key in elsewhere:
            return f"{message}: it does not go with the kind that {'.'.join(location[:-1])} has"
        if suggestions := list(dict.fromkeys(elsewhere[:1] + near)):
            return f"{message}: did you mean {' or '.join(suggestions)}?"
        return f"{message}: known here are {', '.join(siblings)}"
    if problem["type"] == "missing":
        return f"{key} is missing: set it in the file or with {key}=VALUE"
    message = problem["msg"].removeprefix("Value error, ")
    if not key or problem["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}={problem['input']!r}: {message}"


def _without_tags(location: list[str], root: type[BaseModel]) -> list[str]:
    """pydantic puts the tag of a union's member between the keys; a user writes none."""
    keys: list[str] = []
    for i, part in enumerate(location):
        if i == len(location) - 1 or part in _keys_at(root, keys):
            keys.append(part)
    return keys


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        for child in _models_in(field.annotation):
            keys += _all_keys(child, f"{prefix}{name}.")
    return keys


def _keys_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    if not path:
        return list(model.model_fields)
    field = model.model_fields.get(path[0])
    children = _models_in(field.annotation) if field else []
    return [key for child in children for key in _keys_at(child, path[1:])]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if get_origin(annotation) in (Union, types.UnionType):
        return [model for option in get_args(annotation) for model in _models_in(option)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
