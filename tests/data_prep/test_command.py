"""python -m data_prep, as its users call it."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from attvae.data.manifest import Manifest

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Gives exit code, output, and what is said on stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["data_prep", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("data_prep", run_name="__main__")
        code = ended.value.code
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    return run


def test_digits(run: Run, tmp_path: Path) -> None:
    code, output, said = run("digits", "--out", tmp_path / "digits", "--workers", "0")
    assert (code, said) == (0, "")
    assert "is complete, fingerprint" in output
    assert Manifest.read(tmp_path / "digits").name == "digits"
    code, output, said = run("digits", "--out", tmp_path / "digits")
    assert (code, said) == (0, "")
    assert "nothing to do" in output


def test_the_default_folder_has_the_data_sets_name(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("digits")[0] == 0
    assert Manifest.read(tmp_path / "data" / "digits").name == "digits"


def test_another_data_set_in_the_folder(run: Run, digits: Path) -> None:
    code, _, said = run("photos", "--out", digits)
    assert code == 2
    assert said == f"error: {digits} holds the data set 'digits': choose another --out for 'photos'\n"


def test_a_folder_that_cannot_be_made(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, _, said = run("digits", "--out", tmp_path / "file" / "digits")
    assert code == 2
    assert said.startswith("error: ")
    assert str(tmp_path / "file") in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", ["cifar10", "mnist", "omniglot", "imagenet-png", "imagenet", "folder"])
def test_a_source_that_is_not_there(run: Run, tmp_path: Path, name: str) -> None:
    code, _, said = run(name, "--src", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert code == 2
    assert str(tmp_path / "nowhere") in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["arrays", "imagenet-npz"])
def test_a_source_to_unpack_that_is_not_there(run: Run, tmp_path: Path, name: str) -> None:
    code, _, said = run(name, "--src", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert code == 2
    assert str(tmp_path / "nowhere") in said
    assert said.count("\n") == 1
    assert not list((tmp_path / "out").iterdir())


def test_options_that_a_command_cannot_use_are_refused(run: Run, tmp_path: Path) -> None:
    for option in ("--src", "--size", "--format"):
        assert run("digits", option, "1")[0] == 2
    assert run("omniglot", "--src", tmp_path, "--size", "28")[0] == 2
    assert run("folder", "--src", tmp_path, "--format", "gif")[0] == 2


def test_from_a_folder_of_photographs_to_a_picture(run: Run, tmp_path: Path) -> None:
    """Prepared, verified, shown; its tars taken for someone else's and indexed; damaged."""
    photo = load_sample_image("china.jpg")
    (tmp_path / "source").mkdir()
    for number in range(20):
        crop = photo[10 * number : 10 * number + 40, 20 * number : 20 * number + 60]
        Image.fromarray(crop).save(tmp_path / "source" / f"{number}.png")
    out = tmp_path / "out"
    code, _, said = run("folder", "--src", tmp_path / "source", "--out", out, "--size", "16", "--format", "png")
    assert (code, said) == (0, "")
    assert Manifest.read(out).spec.shape == (3, 16, 16)

    code, output, _ = run("verify", out)
    assert code == 0
    assert "is intact: 20 samples in 3 shards" in output

    assert run("show", out, "--out", tmp_path / "grid.png", "--images", "9")[0] == 0
    assert np.asarray(Image.open(tmp_path / "grid.png")).shape == (208, 208, 3)

    (out / "manifest.json").unlink()
    assert run("index", out, "--name", "mine")[0] == 0
    assert Manifest.read(out).name == "mine"
    code, _, said = run("folder", "--src", tmp_path / "source", "--out", out, "--size", "16")
    assert code == 2
    assert "choose another --out" in said

    shard = out / "val-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-1024])
    code, output, _ = run("verify", out)
    assert code == 1
    assert "val-000000.tar has" in output


def test_verify_without_a_manifest(run: Run, tmp_path: Path) -> None:
    code, _, said = run("verify", tmp_path)
    assert code == 2
    assert "has no manifest.json" in said
