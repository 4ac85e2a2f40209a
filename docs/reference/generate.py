"""Writes cli.md and config.md beside this file from the commands and the typed configurations themselves.

python docs/reference/generate.py
"""

import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import typer
import yaml
from pydantic import BaseModel

from attvae.claims.study import Study
from attvae.cli import app
from attvae.config import MAY_CHANGE, RunConfig
from attvae.scale import Cluster
from attvae.search.config import SearchConfig
from data_prep.__main__ import app as data_prep

MADE = "<!-- Made by `python docs/reference/generate.py`: change the source, not this page. -->"
ABOUT_COMMANDS = (
    "Exit codes of `attvae`: 0 done; 2 bad usage or input; 75 stopped as asked after saving, run it again; 1 anything "
    "else. `launch/train.py` takes what `attvae train` takes; launchers start it on many ranks. "
    "`--help` shows the same. The keys: [configuration](config.md)."
)
ABOUT_CONFIGURATIONS = (
    "A configuration is a YAML file: the files that `base:` names come first (relative to it, one or a list), then the "
    "file, then `key=value` from the command line. Later values win, key by key. An unknown key is an error that names "
    "its nearest neighbour, or the keys that there are. Numbers are finite."
)
FAR = 2**31
"""Limits from here on are shown as powers of two."""

Schema = Mapping[str, Any]
"""JSON Schema of a type, as pydantic makes it."""


def pages() -> dict[str, str]:
    """File name -> text."""
    return {"cli.md": cli_page(), "config.md": config_page()}


# ------------------------------------------------------------------------------------------------------- command line


def cli_page() -> str:
    parts = [
        "# Commands",
        MADE,
        ABOUT_COMMANDS,
        *_commands(typer.main.get_command(app), "attvae"),
        "# Preparing data",
        "Exit codes: 0 done; 1 `verify` has found damage; 2 bad usage or input.",
        *_commands(typer.main.get_command(data_prep), "python -m data_prep"),
    ]
    return "\n\n".join(parts) + "\n"


def _commands(command: Any, name: str) -> Iterator[str]:
    """Sections of a command and those below it, in the order of --help."""
    if below := getattr(command, "commands", None):
        for child in below:
            yield from _commands(below[child], f"{name} {child}")
        return
    parameters = [each for each in command.params if not each.hidden]
    arguments = [_metavar(each) for each in parameters if each.param_type_name == "argument"]
    required = [f"{each.opts[0]} {_metavar(each)}" for each in parameters if _is_option(each) and each.required]
    options = ["[OPTION]..."] if any(_is_option(each) and not each.required for each in parameters) else []
    yield f"## {name}"
    yield inspect.cleandoc(command.help)
    yield f"`{' '.join([name, *arguments, *required, *options])}`"
    if parameters:
        kinds = typing.get_type_hints(command.callback)
        yield _table(("", "value", "default", ""), (_parameter(each, kinds[each.name]) for each in parameters))


def _is_option(parameter: Any) -> bool:
    return parameter.param_type_name == "option"


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _parameter(parameter: Any, kind: Any) -> tuple[str, str, str, str]:
    name = ", ".join(f"`{opt}`" for opt in parameter.opts) if _is_option(parameter) else f"`{_metavar(parameter)}`"
    default = parameter.default
    if parameter.required:
        shown = "required"
    else:
        shown = "" if default is None or default is False or default == "" else f"`{default}`"
    return name, _value(kind, parameter), shown, parameter.help or ""


def _value(kind: Any, parameter: Any) -> str:
    """What may be given, in words."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _value(next(option for option in options if option is not type(None)), parameter)
    if origin is list:
        return (
            f"{_value(options[0], parameter)}, repeatable" if _is_option(parameter) else _value(options[0], parameter)
        )
    if origin is Literal:
        return ", ".join(f"`{option}`" for option in options)
    if kind is bool:
        return "flag"
    limits = [f"≥ {_number(parameter.min)}"] if parameter.min is not None else []
    limits += [f"≤ {_number(parameter.max)}"] if parameter.max is not None else []
    return f"{ {int: 'integer', float: 'number', Path: 'path', str: 'text'}[kind] } {', '.join(limits)}"


# ------------------------------------------------------------------------------------------------------ configuration


def config_page() -> str:
    parts = [
        "# Configuration",
        MADE,
        ABOUT_CONFIGURATIONS,
        f"A run that goes on may change {', '.join(f'`{key}`' for key in MAY_CHANGE)}, with all that is below them: "
        "they do not change what is learnt.",
        *_sections(RunConfig),
        "# Search file",
        "What `attvae sweep` takes: [search](../search.md). Keys of `space`, `overrides` and `for_trials` are keys of "
        "the configuration.",
        *_sections(SearchConfig),
        "# Study of the claims",
        "What `attvae claims` takes: [claims](../claims.md).",
        *_sections(Study),
        "# Constants of a cluster",
        "What `--cluster FILE` of `attvae train CONFIG --dry-run --nodes N --gpus-per-node G` takes: "
        "[scale](../scale.md).",
        *_sections(Cluster),
    ]
    return "\n\n".join(parts) + "\n"


def _sections(root: type[BaseModel]) -> Iterator[str]:
    """A table for each type below `root`, which says at which keys it stands."""
    schema = root.model_json_schema()
    kinds = schema.get("$defs", {})
    places: dict[str, list[str]] = {}
    _find_places(schema, "", kinds, places)
    yield _keys(schema, kinds, "")
    for name, keys in places.items():
        one = keys[0] if len(keys) == 1 else ""
        tags = [f" {value['const']}" for value in kinds[name]["properties"].values() if "const" in value]
        yield "## " + ", ".join(f"`{key}`" for key in keys) + "".join(tags)
        yield " ".join(inspect.cleandoc(kinds[name].get("description", "")).split())
        yield _keys(kinds[name], kinds, f"{one}." if one else "")


def _find_places(schema: Schema, prefix: str, kinds: Schema, places: dict[str, list[str]]) -> None:
    """The keys at which each type stands, those of a type directly after it."""
    for key, value in schema["properties"].items():
        for name in _names(value):
            entry = prefix + key + (".KEY" if "additionalProperties" in value else "[]" if "items" in value else "")
            places.setdefault(name, []).append(entry)
            _find_places(kinds[name], f"{entry}.", kinds, places)


def _names(value: Schema) -> list[str]:
    """The types that a key may hold."""
    options = [*value.get("anyOf", ()), *value.get("oneOf", ())]
    options += [value[part] for part in ("additionalProperties", "items") if isinstance(value.get(part), dict)]
    found = [value["$ref"].rpartition("/")[2]] if "$ref" in value else []
    return found + [name for option in options for name in _names(option)]


def _keys(schema: Schema, kinds: Schema, prefix: str) -> str:
    required = schema.get("required", ())
    return _table(
        ("key", "value", "default", ""),
        (
            (f"`{prefix}{key}`", _allowed(value), _default(key, value, kinds, required), _explained(value, kinds))
            for key, value in schema["properties"].items()
        ),
    )


def _allowed(value: Schema) -> str:
    if options := value.get("anyOf") or value.get("oneOf"):
        return " or ".join(dict.fromkeys(_allowed(option) for option in options))
    if "enum" in value or "const" in value:
        return ", ".join(f"`{_yaml(option)}`" for option in value.get("enum", [value.get("const")]))
    if "prefixItems" in value:
        return f"[{', '.join(_allowed(item) for item in value['prefixItems'])}]"
    match value.get("type"):
        case "integer" | "number" as kind:
            limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
            return (
                f"{kind} {', '.join(f'{sign} {_number(value[key])}' for key, sign in limits.items() if key in value)}"
            )
        case "string":
            return "path" if value.get("format") == "path" else "text"
        case "boolean":
            return "`true`, `false`"
        case "null":
            return "`null`"
        case "array":
            item = _allowed(value["items"]) if value.get("items") else ""
            return f"list of {item}" if item else "list"
        case "object":
            return "mapping"
    return "section" if _names(value) else "any"


def _default(key: str, value: Schema, kinds: Schema, required: Any) -> str:
    if key in required:
        return "required"
    default = value.get("default")
    if isinstance(default, dict) and default and len(names := _names(value)) == 1:
        properties = kinds[names[0]]["properties"]
        changed = {name: each for name, each in default.items() if each != properties[name].get("default")}
        return f"`{_yaml(changed)}`" if changed else "its defaults"
    return f"`{_yaml(default)}`"


def _explained(value: Schema, kinds: Schema) -> str:
    """The key's own explanation, or the first sentence of its type's."""
    if "description" in value:
        return str(value["description"])
    text = " ".join(kinds[_names(value)[0]].get("description", "").split())
    return text.partition(". ")[0].rstrip(".")


# ---------------------------------------------------------------------------------------------------------- text


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).removesuffix("\n...\n").strip()


def _number(value: float) -> str:
    for less, sign in ((0, ""), (1, " - 1")):
        power = int(value) + less
        if value >= FAR and power & (power - 1) == 0:
            return f"2^{power.bit_length() - 1}{sign}"
    return f"{value:,g}"


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, ("---",) * len(head), *rows]
    cells = ((" ".join(cell.split()).replace("|", "\\|") for cell in line) for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


if __name__ == "__main__":
    for file, text in pages().items():
        Path(__file__).with_name(file).write_text(text)
