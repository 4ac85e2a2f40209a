"""The reference pages: those that are made are as their sources say, and explain all that they list."""

import re
import runpy
from pathlib import Path

import pytest
import yaml

from attvae.config import flatten, load

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return runpy.run_path(str(REFERENCE / "generate.py"))["pages"]()


@pytest.mark.parametrize("page", ["cli.md", "config.md"])
def test_the_page_is_current(made: dict[str, str], page: str) -> None:
    assert (REFERENCE / page).read_text() == made[page], "run: python docs/reference/generate.py"


@pytest.mark.parametrize("page", ["cli.md", "config.md"])
def test_every_row_is_explained(made: dict[str, str], page: str) -> None:
    rows = [line for line in made[page].splitlines() if line.startswith("| `")]
    assert len(rows) > 90
    assert [row for row in rows if row.endswith("|  |")] == []


@pytest.mark.parametrize("config", ["demo.yaml", "imagenet64.yaml", "paper/cifar10_attvae16.yaml"])
def test_every_key_of_a_run_is_on_the_page(made: dict[str, str], config: str) -> None:
    """By what the loader makes of a file, not by the schema that the page is made from."""
    page = made["config.md"]
    shared = {}
    for section in re.split("^## ", page, flags=re.M)[1:]:
        heading, _, text = section.partition("\n")
        shared |= dict.fromkeys(re.findall(r"`([^`]+)`", heading), text)
    for key in flatten(yaml.safe_load(load(ROOT / "configs" / config).to_yaml())):
        place, _, leaf = key.rpartition(".")
        assert f"| `{key}` |" in page or f"| `{leaf}` |" in shared[place], key
