"""`attvae sync` as a user sees it: what it says, what it returns, what MLflow holds afterwards."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image
from typer.testing import CliRunner, Result

from attvae.cli import app
from attvae.config import load
from attvae.run_folder import RunFolder
from attvae.tracking.jsonl import Journal

TINY = Path(__file__).parents[1] / "configs" / "test" / "tiny.yaml"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store")
    MlflowClient(f"sqlite:///{path}/mlflow.db").search_experiments()
    return path


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def made_run(path: Path, store: Path, **tracking: str) -> Path:
    """A run folder as a run without a network leaves it."""
    settings = {"uri": f"sqlite:///{store}/mlflow.db", "artifacts": str(store / "artifacts"), **tracking}
    cfg = load(TINY, [f"tracking.{key}={value}" for key, value in settings.items()])
    (path / "images").mkdir(parents=True)
    (path / "config.yaml").write_text(cfg.to_yaml())
    journal = Journal(path / "metrics.jsonl", None)
    for step in (100, 200):
        journal.metrics(step, {"val/nelbo_nats": 30.0 - step / 100, "kl/layer_00": 2.0})
    Image.new("L", (8, 8), 9).save(path / "images" / "samples-000000000100.png")
    return path


def sync(*runs: Path) -> Result:
    return CliRunner().invoke(app, ["sync", *map(str, runs)])


def stored(run: Path, store: Path):
    run_id = json.loads((run / "mlflow.json").read_text())["run_id"]
    return MlflowClient(f"sqlite:///{store}/mlflow.db").get_run(run_id)


def test_runs_are_sent_once_and_each_has_its_line(tmp_path: Path, store: Path) -> None:
    runs = [made_run(tmp_path / name, store) for name in ("first", "second")]
    for run in runs:
        RunFolder(run).record_status("FINISHED")
    said = sync(*runs)
    assert said.exit_code == 0, said.output
    for run, line in zip(runs, said.stdout.splitlines(), strict=True):
        found = stored(run, store)
        assert line.startswith(f"{run}: 4 figures and 1 pictures sent, FINISHED: run {found.info.run_id} in sqlite:///")
        assert found.info.status == "FINISHED"
        assert found.info.run_name == run.name
        assert found.data.params["model.num_layers"] == str(load(TINY).model.num_layers)
        assert found.data.metrics == {"val/nelbo_nats": 28.0, "kl/layer_00": 2.0}
    again = sync(*runs)
    assert again.stdout.count(": 0 figures and 0 pictures sent, FINISHED") == 2
    assert stored(runs[0], store).info.end_time == round(
        1000 * json.loads((runs[0] / "status.json").read_text())["time"]
    )


def test_a_run_that_died_without_a_word_was_killed(tmp_path: Path, store: Path) -> None:
    run = made_run(tmp_path / "run", store)
    RunFolder(run).record_status("RUNNING")
    (run / "lock").write_text("pid 1 on elsewhere")
    assert "KILLED" in sync(run).stdout
    found = stored(run, store)
    assert found.info.status == "KILLED"
    assert found.data.tags["reason"] == "the process ended without a word"
    assert found.info.end_time == pytest.approx(1000 * (run / "metrics.jsonl").stat().st_mtime, abs=2)

    (run / "summary.json").write_text("{}")  # all was done but the telling
    assert "FINISHED" in sync(run).stdout
    assert "reason" not in stored(run, store).data.tags


def test_a_run_that_is_alive_stays_running(tmp_path: Path, store: Path) -> None:
    run = made_run(tmp_path / "run", store)
    (run / "lock").touch()
    hold = "import sys; from pathlib import Path; from attvae.run_folder import RunFolder; "
    hold += "folder = RunFolder(Path(sys.argv[1])); folder.claim(); print(1, flush=True); input()"
    owner = subprocess.Popen(
        [sys.executable, "-c", hold, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline()
        said = sync(run)
        assert ": 4 figures and 1 pictures sent, RUNNING" in said.stdout
        assert stored(run, store).info.status == "RUNNING"
        assert RunFolder(run).is_in_use(), "the lock is still its own"
    finally:
        owner.communicate(b"\n")
    assert "KILLED" in sync(run).stdout


@pytest.mark.parametrize("content", [None, "- a list", "{broken", "tracking: {uri: [1]}"])
def test_a_folder_that_is_no_run_is_named(tmp_path: Path, store: Path, content: str | None) -> None:
    folder, run = tmp_path / "folder", made_run(tmp_path / "run", store)
    folder.mkdir()
    if content is not None:
        (folder / "config.yaml").write_text(content)
    said = sync(folder, run)
    assert said.exit_code == 2
    assert str(folder / "config.yaml") in said.stderr
    assert "Traceback" not in said.output
    assert "4 figures" in said.stdout, "the other one is sent"
    assert not (folder / "mlflow.json").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.jsonl", "{broken\n"),
        ("environment.json", ""),
        ("environment.json", "[]"),
        ("status.json", "{}"),
    ],
)
def test_damage_in_the_folder_is_not_blamed_on_mlflow(tmp_path: Path, store: Path, file: str, content: str) -> None:
    run = made_run(tmp_path / "run", store)
    (run / file).write_text(content)
    said = sync(run)
    assert said.exit_code == 2
    assert str(run / file) in said.stderr
    assert "MLflow" not in said.stderr
    assert not (run / "mlflow.json").exists()


def test_no_second_store_is_made_for_a_run_that_has_one(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("here", "elsewhere"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copy(store / "mlflow.db", "mlflow.db")
    run = made_run(tmp_path / "run", store, uri="sqlite:///mlflow.db", artifacts="artifacts")
    assert sync(run).exit_code == 0
    noted = (run / "mlflow.json").read_text()

    monkeypatch.chdir(tmp_path / "elsewhere")
    said = sync(run)
    assert said.exit_code == 2
    assert f"there is no store {tmp_path}/elsewhere/mlflow.db" in said.stderr
    assert "MLFLOW_TRACKING_URI" in said.stderr
    assert (run / "mlflow.json").read_text() == noted
    assert list(Path().iterdir()) == []

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/here/mlflow.db")
    assert ": 0 figures and 0 pictures sent" in sync(run).stdout


def test_a_store_out_of_reach_is_exit_code_1(tmp_path: Path, store: Path) -> None:
    run = made_run(tmp_path / "run", store, uri="http://me:hunter2@127.0.0.1:9")
    said = sync(run)
    assert said.exit_code == 1
    assert "MLflow at http://***@127.0.0.1:9 takes no data (" in said.stderr
    assert "Connection refused" in said.stderr
    assert "MLFLOW_TRACKING_URI" in said.stderr
    assert "hunter2" not in said.output


def test_one_run_id_for_two_folders_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "abc")
    said = sync(tmp_path / "a", tmp_path / "b")
    assert said.exit_code == 2
    assert "MLFLOW_RUN_ID=abc names one run, and here are 2 folders" in said.stderr


def test_help_needs_no_mlflow() -> None:
    script = "import sys, attvae.cli; print('mlflow' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ))
    assert said.stdout == "False\n"
