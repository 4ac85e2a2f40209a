"""In place of pydantic where it is not installed: reads configurations that are known to be right, checks nothing."""

import types
from collections.abc import Callable
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

ValidationError = ValueError
StrictBool = bool
_REQUIRED = object()


class _Field:
    def __init__(self, default: Any) -> None:
        self.default = default


def Field(default: Any = _REQUIRED, **_: Any) -> Any:
    return _Field(default)


def ConfigDict(**settings: Any) -> dict[str, Any]:
    return settings


def model_validator(mode: str) -> Callable[[Any], Any]:
    return lambda validator: validator


class BaseModel:
    def __init__(self, **given: Any) -> None:
        for name, annotation in get_type_hints(type(self), include_extras=True).items():
            setattr(self, name, _read(annotation, given[name]) if name in given else _default(type(self), name))


def _default(model: type[BaseModel], name: str) -> Any:
    value = getattr(model, name)
    return value.default if isinstance(value, _Field) else value


def _read(annotation: Any, value: Any) -> Any:
    """A mapping becomes the model that is meant: the only one of an optional, or that of its `kind`."""
    if get_origin(annotation) is Annotated:
        return _read(get_args(annotation)[0], value)
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, dict):
        return value
    choices = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    models = [choice for choice in choices if isinstance(choice, type) and issubclass(choice, BaseModel)]
    (model,) = [model for model in models if len(models) == 1 or _default(model, "kind") == value["kind"]]
    return model(**value)
