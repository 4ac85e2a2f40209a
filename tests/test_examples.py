"""examples/: what a reader finds there runs."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image
from sklearn.datasets import load_sample_image

from attvae.config import load
from attvae.train import train

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOK = EXAMPLES / "attention.ipynb"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches of a photograph, larger than the size that is trained on."""
    folder = tmp_path_factory.mktemp("pictures")
    photo = load_sample_image("flower.jpg")
    for number in range(40):
        y, x = divmod(number, 8)
        Image.fromarray(photo[40 * y :, 40 * x :][:24, :24]).save(folder / f"{number:02d}.png")
    return folder


def run_script(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "train_from_python.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
def test_a_folder_is_trained_on_and_once_only(pictures: Path, tmp_path: Path) -> None:
    asked = (pictures, "mine", "--size", 16, "--samples", 160)
    first = run_script(*asked, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}  # nothing is left where it was started
    with Image.open(tmp_path / "mine" / "samples.png") as samples:
        assert samples.size == (8 * 66 + 2, 8 * 66 + 2)  # 64 tiles of 16 pixels, enlarged to 64, and the gaps
    drawn = (tmp_path / "mine" / "samples.png").read_bytes()
    again = run_script(*asked, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "images/s" not in again.stdout
    assert (tmp_path / "mine" / "samples.png").read_bytes() == drawn


def test_bad_input_is_one_message(tmp_path: Path) -> None:
    ended = run_script(tmp_path / "nowhere", "mine", cwd=tmp_path)
    assert ended.returncode == 2
    assert "nowhere" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_stored_outputs_are_of_one_run_and_of_no_machine() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert NOTEBOOK.stat().st_size < 400_000
    outputs = str([cell.outputs for cell in cells])
    assert not re.search(r"/home|/tmp|/work|/root|site-packages|stderr|'error'", outputs)


@pytest.mark.slow
def test_the_notebook_runs_on_a_fresh_export(digits: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "examples").mkdir(parents=True)
    (repository / "data").mkdir()
    (repository / "data" / "digits").symlink_to(digits)
    changes = [f"data.path={digits}", "train.samples=200", "engine.name=plain", "tracking.mlflow=false"]
    train(load(Path("configs/demo.yaml"), changes), repository / "runs" / "demo")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=200, resources={"metadata": {"path": repository / "examples"}})
    client.execute()
    pictures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert sum("image/png" in output.data for output in pictures) == 7


@pytest.mark.slow
def test_a_notebook_without_a_model_says_what_to_run(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=200, resources={"metadata": {"path": tmp_path}})
    with pytest.raises(Exception, match="make demo"):
        client.execute()
