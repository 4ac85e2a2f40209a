"""docs/reference: the pages on formats list what is written, and no more."""

import json
import re
from pathlib import Path

import pytest
from launched import PLAIN, command, in_mlflow, run
from safetensors import safe_open

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"


def table(page: str, head: str) -> list[list[str]]:
    """The rows of the one table whose first column has this head."""
    found = re.findall(rf"^\| {re.escape(head)} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", (REFERENCE / page).read_text(), re.M)
    assert len(found) == 1, head
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in found[0].splitlines()]


def listed(page: str, head: str, *there: str) -> set[str]:
    """What the first column names, of those rows whose second column is one of `there`, where that is asked."""
    return {
        name
        for first, second, *_ in table(page, head)
        if not there or second in there
        for name in re.findall("`([^`]+)`", first)
    }


def pattern(name: str) -> str:
    """<rank, 4 digits> and the like are digits or words."""
    return re.sub("<[^>]+>", "[a-z0-9]+", re.escape(name.rstrip("/")).replace(r"\ ", " "))


def assert_as_listed(folder: Path, page: str, head: str, *there: str) -> None:
    """Every file that must be there is, and none that no row has."""
    files = sorted(each.name for each in folder.iterdir())
    every = [pattern(name) for name in listed(page, head)]
    assert [file for file in files if not any(re.fullmatch(name, file) for name in every)] == []
    must = [pattern(name) for name in listed(page, head, "always", *there)]
    assert [name for name in must if not any(re.fullmatch(name, file) for file in files)] == []


def assert_run_folder_as_listed(out: Path, *there: str) -> None:
    page = "run_folder.md"
    assert_as_listed(out, page, "file", "at the end", *there)
    for file in out.glob("*.json"):
        if file.name != "deepspeed.json":
            assert json.loads(file.read_text()).keys() == listed(page, f"key of `{file.name}`"), file.name
    assert json.loads((out / "summary.json").read_text())["test"].keys() == listed(page, "key of a split")
    for checkpoint in (out / "checkpoints").iterdir():
        assert_as_listed(checkpoint, page, "file of a checkpoint")
        assert json.loads((checkpoint / "state.json").read_text()).keys() == listed(page, "key of `state.json`")
        assert json.loads((checkpoint / "manifest.json").read_text()).keys() == {"format_version", "files"}
        tensors = next(row for row in table(page, "file of a checkpoint") if "safetensors" in row[0])
        assert kinds_of_tensors(checkpoint) <= set(re.findall("`([a-z_]+)/<name>`", tensors[2]))


def kinds_of_tensors(checkpoint: Path) -> set[str]:
    found = set()
    for file in checkpoint.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found |= {key.partition("/")[0] for key in tensors.keys()}  # noqa: SIM118 - it is no mapping
    return found


def test_a_fresh_run_folder(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(command(digits, out, PLAIN, "train.samples=100", "eval.every=100", "checkpoint.every=100"))
    assert_run_folder_as_listed(out)


@pytest.mark.slow
def test_a_fresh_run_folder_with_deepspeed_and_mlflow(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(command(digits, out, *in_mlflow(tmp_path)))
    assert_run_folder_as_listed(out, "if `engine.name=zero`", "if `tracking.mlflow`")


def test_a_fresh_data_set(digits: Path) -> None:
    page = "manifest.md"
    assert_as_listed(digits, page, "file")
    manifest = json.loads((digits / "manifest.json").read_text())
    assert manifest.keys() == listed(page, "key of `manifest.json`")
    assert manifest["spec"].keys() == listed(page, "key of `spec`")
    assert manifest["splits"].keys() == {"train", "val", "test"}
    for shard in manifest["splits"]["val"]:
        assert shard.keys() == listed(page, "key of a shard")
