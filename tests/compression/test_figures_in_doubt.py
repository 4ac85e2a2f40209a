"""Models and data whose figures could be misunderstood: refused, or marked as `attvae evaluate` marks them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from compression.conftest import export_to
from PIL import Image
from typer.testing import CliRunner

from attvae.cli import app
from attvae.config import load
from attvae.data.config import DataConfig
from attvae.data.loader import eval_batches, open_manifest
from attvae.data.manifest import Manifest
from attvae.evaluation_noise import EVALUATION_SEED
from attvae.train import train
from data_prep.digits import dataset
from data_prep.writer import prepare

TINY = Path(__file__).parents[2] / "configs" / "test" / "tiny.yaml"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def refused(*arguments: object) -> str:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    return result.stderr


def forced(tmp_path: Path, *arguments: object) -> list[str]:
    """Why, of a compression that goes on: said at the top of the JSON, in each row of the table and below it."""
    result = run("compress", *arguments, "--out", tmp_path / "file", "--json", tmp_path / "figures.json")
    assert result.exit_code == 0, result.output
    reasons: list[str] = json.loads((tmp_path / "figures.json").read_text())["forced"]
    rows = [line for line in result.stdout.splitlines() if "│" in line]
    assert len(rows) == 4 + 3, "net, two bounds, gross; PNG, WebP, JPEG XL"
    assert sum("(forced)" in row for row in rows) == (len(rows) if reasons else 0)
    assert [line for line in result.stdout.splitlines() if line.startswith("forced: ")] == [
        f"forced: {reason}" for reason in reasons
    ]
    return reasons


@pytest.fixture(autouse=True)
def without_cjxl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # it takes its time


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(2, size=(8, 8), dtype=np.uint8) * 255
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture(scope="module")
def unfinished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that has seen 32 of 64 samples."""
    out = tmp_path_factory.mktemp("runs") / "unfinished"
    given = [f"data.path={digits}", "train.samples=32", "train.lr_warmup=0", "engine.name=plain"]
    train(load(TINY, [*given, "train.global_batch=32", "tracking.mlflow=false"]), out)
    config = (out / "config.yaml").read_text()
    assert "samples: 32\n" in config
    (out / "config.yaml").write_text(config.replace("samples: 32\n", "samples: 64\n"))
    return out


def test_the_data_of_the_training_are_as_they_should_be(tmp_path: Path, digits: Path) -> None:
    model = export_to(tmp_path / "model", "digits", data=digits)
    assert forced(tmp_path, model, "--data", digits, "--split", "val") == []


def test_other_data_than_the_trainings(tmp_path: Path, digits: Path) -> None:
    model = export_to(tmp_path / "model", "digits", data=digits)
    original = dataset()
    prepare(replace(original, splits={**original.splits, "train": original.splits["val"]}), tmp_path / "other")
    shutil.copytree(digits, tmp_path / "newer")
    manifest = json.loads((digits / "manifest.json").read_text())
    (tmp_path / "newer" / "manifest.json").write_text(json.dumps({**manifest, "version": "2"}))
    found, trained = Manifest.read(tmp_path / "other").fingerprint, Manifest.read(digits).fingerprint
    for data, difference in (("other", f"fingerprint {found}, not {trained}"), ("newer", "version 2, not 1")):
        arguments = [model, "--data", tmp_path / data, "--split", "val"]
        said = refused("compress", *arguments, "--out", tmp_path / "file")
        assert f"was not trained on what {tmp_path / data} holds ({difference})" in said
        assert "add --force" in said
        assert not (tmp_path / "file").exists()
        assert forced(tmp_path, *arguments, "--force") == [f"other data than the training's: {difference}"]
        (tmp_path / "file").unlink()


def test_an_unfinished_run(tmp_path: Path, unfinished: Path, images: Path) -> None:
    said = refused("compress", unfinished, images, "--out", tmp_path / "file")
    assert "is unfinished: 32 of 64 samples seen" in said
    assert "add --force" in said
    assert forced(tmp_path, unfinished, images, "--force") == ["unfinished: 32 of 64 samples seen"]
    result = run("decompress", tmp_path / "file", "--model", unfinished, "--out", tmp_path / "out")
    assert result.exit_code == 0, "there are no figures to mark: the fingerprint says whether it is the model"
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_an_export_that_was_made_by_force_is_marked_always(tmp_path: Path, images: Path) -> None:
    model = export_to(tmp_path / "model", "binary", forced=("unfinished: 1 of 2 samples seen",))
    assert forced(tmp_path, model, images) == ["unfinished: 1 of 2 samples seen"]


def test_images_that_the_training_scaled(tmp_path: Path, digits: Path, exported: Callable[..., Path]) -> None:
    """`data.size`: the export knows the size of its images, not that of those that are stored."""
    model = export_to(tmp_path / "model", "small_digits", data=digits)
    assert forced(tmp_path, model, "--data", digits, "--split", "val") == []
    assert run("decompress", tmp_path / "file", "--model", model, "--out", tmp_path / "out").exit_code == 0
    config = DataConfig(path=str(digits), size=4)
    batches = eval_batches(open_manifest(config), config, "val", EVALUATION_SEED, 0, 50, 0, 1)
    expected = [x for batch in batches for x, weight in zip(batch.x, batch.weights, strict=True) if weight]
    for x, path in zip(expected, sorted((tmp_path / "out").iterdir()), strict=True):
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(image), x[0].numpy().astype(bool))
    unknown = exported("small_digits")
    said = refused("compress", unknown, "--data", digits, "--out", tmp_path / "other")
    assert "the model takes DataSpec(height=4" in said, "of which nobody knows that it was trained on these"


def test_a_damaged_image_is_never_left_out(tmp_path: Path, unfinished: Path, digits: Path) -> None:
    shutil.copytree(unfinished, tmp_path / "run")
    shutil.copytree(digits, tmp_path / "data")
    config = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(config.replace("on_damage: raise", "on_damage: skip"))
    [shard] = (tmp_path / "data").glob("val-*.tar")
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    said = refused(
        "compress",
        tmp_path / "run",
        "--data",
        tmp_path / "data",
        "--split",
        "val",
        "--out",
        tmp_path / "file",
        "--force",
    )
    assert shard.name in said
    assert said.endswith(": prepare the data again\n")
    assert not (tmp_path / "file").exists()
