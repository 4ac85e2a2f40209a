"""The authors' weights, from their file to figures, by the command line alone."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from array_images import ArrayImages, array_dataset
from golden.arrays import FOLDER, arrays, facts, nchw

import attvae
from data_prep.writer import prepare


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "attvae.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lies beside the weights: the authors' evaluation command, and what the images are."""
    folder = tmp_path_factory.mktemp("official")
    flags = " ".join(f"--{flag}={value}" for flag, value in facts()["flags"].items())
    (folder / "eval_command.sh").write_text(f"python3 run.py --mode=eval --dataset=cifar10 {flags}\n")
    images = {"height": 16, "width": 16, "channels": 3, "num_bits": 8, "binary": False, "pad": 0}
    (folder / "images.json").write_text(json.dumps(images))
    return folder


@pytest.fixture(scope="module")
def imported(beside: Path) -> Path:
    out = beside / "export"
    done = run(
        "import-official",
        FOLDER / "cfg1_weights.h5",
        *("--command", beside / "eval_command.sh"),
        *("--data-spec", beside / "images.json"),
        *("--out", out),
    )
    assert done.returncode == 0, done.stderr
    assert f"{facts()['count_params_official']:,} parameters" in done.stdout
    return out


def test_the_imported_model_computes_the_authors_numbers(imported: Path) -> None:
    golden = arrays("cfg1_eval")
    model = attvae.load(imported)
    elbo = model(nchw(golden["images"]).to(torch.uint8), [nchw(golden[f"eps.{i}"]) for i in range(4)])
    np.testing.assert_allclose(elbo.nelbo_nats.detach(), golden["nelbo"], rtol=1e-5)


def test_loading_needs_torch_and_safetensors_alone(imported: Path) -> None:
    program = (
        "import sys, attvae; attvae.load(sys.argv[1]); "
        "print([m for m in ('deepspeed', 'ray', 'mlflow', 'webdataset') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(imported)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_evaluate_takes_the_export(imported: Path, tmp_path: Path) -> None:
    golden = arrays("cfg1_eval")

    images = ArrayImages(golden["images"].astype(np.uint8))
    prepare(array_dataset(images, "golden"), tmp_path / "data")
    done = run("evaluate", imported, "--data", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("│ test NELBO  ")]
    nelbo = float(line.split("│")[2].replace(",", ""))
    # Other latent noise than the fixture's: the same images, the same model, a figure nearby.
    assert nelbo == pytest.approx(float(golden["nelbo"].mean()), rel=0.05)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("truncated.h5", "truncated.h5"),
        ("foreign.h5", "foreign.h5"),
        ("missing.h5", "missing.h5"),
    ],
)
def test_a_file_that_does_not_fit(beside: Path, tmp_path: Path, file: str, said: str) -> None:
    (tmp_path / "truncated.h5").write_bytes((FOLDER / "cfg1_weights.h5").read_bytes()[:100_000])
    (tmp_path / "foreign.h5").write_bytes(b"not an h5 file")
    done = run(
        "import-official",
        tmp_path / file,
        *("--command", beside / "eval_command.sh"),
        *("--data-spec", beside / "images.json"),
        *("--out", tmp_path / "export"),
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "export").exists()


def test_a_damaged_export_is_refused(imported: Path, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text((imported / "model.json").read_text())
    content = (imported / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        attvae.load(tmp_path)
    with pytest.raises(ValueError, match=r"no export folder: .*model\.json cannot be read"):
        attvae.load(tmp_path / "nowhere")
