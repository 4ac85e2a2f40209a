"""`attvae export`: a run's weights where nothing of the training is installed, and what it refuses."""

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from clean_environment import CleanEnvironment
from launched import PLAIN, REPOSITORY, command, run
from stored_images import stored_images

import attvae
from attvae import tensor_file
from attvae.export import ExportConfig, read_config, write
from attvae.model.vae import DeepVAE
from attvae.tensor_file import TensorFile

SCORE = """
import importlib.util, json, sys
for name in ("deepspeed", "ray", "mlflow", "webdataset", "typer", "yaml"):
    assert importlib.util.find_spec(name) is None, name
import numpy, torch
torch.set_num_threads(1)
import attvae
from attvae.pyfunc_model import PyfuncModel
model = attvae.load(sys.argv[1])
assert model.sample(2, temperature=0.8).shape == (2, 1, 8, 8)
figures = PyfuncModel(model).predict(numpy.load(sys.argv[2]), {"draws": 2, "first_id": 0})
print(json.dumps({name: value.mean(axis=0).tolist() for name, value in figures.items()}))
"""


def export(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "attvae.cli", "export", *map(str, arguments)]
    return subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    run(command(digits, folder, PLAIN, "checkpoint.every=1000"))
    return folder


@pytest.fixture(scope="module")
def exported(finished: Path) -> Path:
    out = finished.parent / "exported"
    done = export(finished, "--out", out, "--with", "torch-export")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return out


def test_it_scores_as_the_training_did_where_only_torch_and_safetensors_are(
    exported: Path, finished: Path, digits: Path, tmp_path: Path
) -> None:
    clean = CleanEnvironment(tmp_path / "clean", ["torch", "safetensors", "numpy", "pydantic", "jaxtyping"])
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "clean")}))
    shutil.copytree(REPOSITORY / "attvae", packages / "attvae", ignore=shutil.ignore_patterns("__pycache__"))
    np.save(tmp_path / "images.npy", stored_images(digits, "test"))
    figures = json.loads(clean.run(SCORE, str(exported), "images.npy", cwd=tmp_path))
    test = json.loads((finished / "summary.json").read_text())["test"]
    assert figures["nelbo_nats"] == pytest.approx(test["nelbo_nats"], rel=1e-5)
    assert figures["nll_nats"] == pytest.approx(test["nll_nats"], rel=1e-5)
    assert figures["kl_nats"] == pytest.approx(test["kl_nats_per_layer"], rel=1e-5)


def test_it_is_what_the_run_wrote_at_its_end(exported: Path, finished: Path) -> None:
    ours, its = attvae.load(exported).state_dict(), attvae.load(finished / "model").state_dict()
    assert ours.keys() == its.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, its[name], rtol=0, atol=0)
    assert read_config(exported) == read_config(finished / "model")


def test_it_says_what_it_is(exported: Path, finished: Path, digits: Path) -> None:
    stated = json.loads((exported / "model.json").read_text())
    manifest = json.loads((digits / "manifest.json").read_text())
    assert stated["trained_on"] == {name: manifest[name] for name in ("name", "version", "fingerprint")}
    assert (stated["samples_seen"], stated["weights"], stated["forced"]) == (2000, "ema", [])
    card = (exported / "README.md").read_text()
    test = json.loads((finished / "summary.json").read_text())["test"]
    [row] = [line for line in card.splitlines() if line.startswith("| test |")]
    assert f"{test['nelbo_nats']:.4f}" in row
    assert f"{test['bits_per_dim']:.4f}" in row
    assert f" {test['images']:,}" in row
    for said in (manifest["source"], manifest["fingerprint"], "attvae.load(", "attvae sample ", "encoder.pt2", "2022"):
        assert said in card
    assert (exported / "model.safetensors").stat().st_mode == (exported / "model.json").stat().st_mode
    assert not [path for path in exported.parent.iterdir() if path.name.startswith(".")]


def test_an_export_of_before_loads(exported: Path, tmp_path: Path) -> None:
    old = shutil.copytree(exported, tmp_path / "old")
    stated = json.loads((old / "model.json").read_text())
    first = {"format_version": 1, "model": stated["model"], "spec": stated["spec"]}
    (old / "model.json").write_text(json.dumps(first))
    assert attvae.load(old).state_dict().keys() == attvae.load(exported).state_dict().keys()
    assert read_config(old).trained_on is None
    (old / "model.json").write_text(json.dumps(stated | {"format_version": 3, "new": 1}))
    with pytest.raises(ValueError, match="has export format 3, this attvae reads 1 and 2"):
        attvae.load(old)


def unfinished(finished: Path, folder: Path) -> Path:
    """The run as a kill in its last update would have left it."""
    shutil.copytree(finished, folder)
    (folder / "summary.json").unlink()
    shutil.rmtree(folder / "checkpoints" / f"{2000:012}")
    return folder


def without_ema(finished: Path, folder: Path) -> Path:
    shutil.copytree(finished, folder)
    checkpoint = folder / "checkpoints" / f"{2000:012}"
    [path] = checkpoint.glob("*.safetensors")
    held = TensorFile(path)
    kept = {name: held.tensor(name) for name in held.shapes if not name.startswith("ema/")}
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"][path.name] = tensor_file.write(path, kept)._asdict()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_what_is_not_for_others_is_refused_or_marked(finished: Path, tmp_path: Path) -> None:
    cases = {
        "unfinished: 1,000 of 2,000 samples seen": unfinished(finished, tmp_path / "unfinished"),
        "has no EMA": without_ema(finished, tmp_path / "plain"),
    }
    for said, folder in cases.items():
        out = tmp_path / f"{folder.name}-export"
        done = export(folder, "--out", out)
        assert done.returncode == 2
        assert said in done.stderr
        assert not out.exists()
        done = export(folder, "--out", out, "--force")
        assert done.returncode == 0, done.stderr
        config, card = read_config(out), (out / "README.md").read_text()
        assert len(config.forced) == 1
        assert f"* {config.forced[0]}" in card
        assert "None were computed with these weights" in card
    assert read_config(tmp_path / "unfinished-export").samples_seen == 1000
    assert read_config(tmp_path / "plain-export").weights == "parameters"
    trained, averaged = (attvae.load(tmp_path / f"{name}-export").state_dict() for name in ("plain", "unfinished"))
    assert any((trained[name] != averaged[name]).any() for name in trained)


def test_bad_input(finished: Path, exported: Path, tmp_path: Path) -> None:
    empty = shutil.copytree(finished, tmp_path / "empty", ignore=shutil.ignore_patterns("checkpoints"))
    (tmp_path / "file").write_text("")
    for arguments, said in (
        ((tmp_path, "--out", tmp_path / "out"), "is neither a run folder (no config.yaml)"),
        ((empty, "--out", tmp_path / "out"), "has no complete checkpoint yet"),
        ((exported, "--out", tmp_path / "out"), "is an export already"),
        ((finished, "--out", exported), "exists: choose another folder"),
        ((finished, "--out", tmp_path / "file" / "out"), f"cannot write {tmp_path / 'file' / 'out'}"),
        ((finished, "--out", tmp_path / "out", "--with", "tflite"), "'tflite' is none of torch-export, onnx"),
    ):
        done = export(*arguments)
        assert done.returncode == 2, said
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file"]


def test_a_failure_on_the_way_leaves_nothing(exported: Path, tmp_path: Path) -> None:
    model: DeepVAE = attvae.load(exported)

    def failing(folder: Path) -> None:
        assert (folder / "model.safetensors").is_file()
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match="No space left on device"):
        write(tmp_path / "out", model, ExportConfig(model=model.config, spec=model.spec), "", failing)
    assert not [*tmp_path.iterdir()]
