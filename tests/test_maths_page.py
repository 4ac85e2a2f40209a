"""docs/maths.md: from each equation of the paper to code that is there."""

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from attvae.config import flatten, load

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "maths.md").read_text()
EQUATION = re.compile(r"^\| (\d+) \| (.+) \| ([^|]+) \|$", re.MULTILINE)
KEY = re.compile(r"key `([\w.]+)`|\(`([\w.]+)`\)")


def tables(head: str) -> str:
    return "".join(re.findall(rf"^{re.escape(head)}\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE))


EQUATIONS = {int(number): where for number, _, where in EQUATION.findall(tables("| | equation | function |"))}
NAMED = sorted({name for where in EQUATIONS.values() for name in re.findall(r"`((?:\w+\.)+\w+)`", KEY.sub("", where))})


def resolved(name: str) -> Any:
    """What `attvae.<name>` is: a module, a class, a function, a method."""
    found: Any = importlib.import_module("attvae")
    for part in name.split("."):
        if isinstance(found, ModuleType) and not hasattr(found, part):
            importlib.import_module(f"{found.__name__}.{part}")
        found = getattr(found, part)
    return found


def test_equations_are_numbered_in_one_row() -> None:
    numbers = [int(number) for number, *_ in EQUATION.findall(tables("| | equation | function |"))]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 33


def test_the_paper_leads_to_each_equation() -> None:
    cells = re.findall(r"\| ([\d–,; ]+) \|$", tables("| of the paper | equations |"), re.MULTILINE)
    spans = [span.split("–") for cell in cells for span in re.split("[,;] ", cell)]
    led_to = [number for span in spans for number in range(int(span[0]), int(span[-1]) + 1)]
    assert sorted(led_to) == list(range(1, 34))
    assert set(led_to) <= EQUATIONS.keys()


@pytest.mark.parametrize("number", EQUATIONS)
def test_an_equation_names_code(number: int) -> None:
    assert re.search(r"`(?:\w+\.)+\w+`", KEY.sub("", EQUATIONS[number])), EQUATIONS[number]


@pytest.mark.parametrize("name", NAMED)
def test_what_is_named_is_there(name: str) -> None:
    found = resolved(name)
    assert isinstance(found, ModuleType | property) or callable(found), f"{name} is {found!r}"
    described = found if inspect.getdoc(found) else inspect.getmodule(found)
    assert inspect.getdoc(described), f"neither {name} nor its module says what it is"


def test_the_keys_that_are_named_are_there() -> None:
    keys = flatten(load(ROOT / "configs" / "paper" / "omniglot_attvae15.yaml").model_dump(mode="json"))
    named = [name for where in EQUATIONS.values() for found in KEY.findall(where) for name in found if name]
    assert named
    for name in named:
        assert name in keys or any(key.endswith(f".{name}") for key in keys), name
