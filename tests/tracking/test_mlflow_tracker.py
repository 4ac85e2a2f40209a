"""What a stranger's MLflow client finds. The store is a real SQLite file: created once (about 2 s), then copied."""

import json
import logging
import math
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from attvae.tracking.config import TrackingConfig
from attvae.tracking.jsonl import Journal, read
from attvae.tracking.mlflow_tracker import MlflowTracker


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fresh") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def place(tmp_path, fresh_store, monkeypatch) -> Path:
    """A folder with an empty store and an empty run folder, and no MLflow settings around."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(fresh_store, tmp_path / "mlflow.db")
    (tmp_path / "run").mkdir()
    return tmp_path


class Life:
    """One process's life of a run: the journal, and the tracker that follows it."""

    def __init__(self, place: Path, resume_at: int | None = None, params=None, **config) -> None:
        self.journal = Journal(place / "run" / "metrics.jsonl", resume_at)
        settings = TrackingConfig(
            **{"uri": f"sqlite:///{place}/mlflow.db", "artifacts": str(place / "mlartifacts"), **config}
        )
        params = {"train.lr": 1e-3} if params is None else params
        tags = {"mlflow.source.git.commit": "c0ffee", "git.dirty": True, "world_size": 2}
        self.tracker = MlflowTracker(settings, place / "run", self.journal, params, tags)

    def metrics(self, samples_seen: int, **values: float) -> None:
        self.journal.metrics(samples_seen, values)
        self.tracker.metrics(samples_seen, values)


def client(place: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{place}/mlflow.db")


def only_run(place: Path, experiment: str = "attvae"):
    (run,) = client(place).search_runs([client(place).get_experiment_by_name(experiment).experiment_id])
    return run


def history(place: Path, key: str) -> list[tuple[int, float]]:
    run_id = only_run(place).info.run_id
    return sorted((metric.step, metric.value) for metric in client(place).get_metric_history(run_id, key))


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def picture(path: Path, value: int) -> Path:
    Image.new("L", (12, 8), value).save(path)
    return path


def test_a_client_finds_the_run_and_all_it_holds(place):
    life = Life(place, params={"train.lr": 1e-3, "model.norm": "group", "model.scales": [1, 2], "resume": None})
    life.metrics(100, **{"train/nelbo_nats": 30.0, "kl/layer_00": 2.0})
    life.metrics(200, **{"train/nelbo_nats": 25.0, "kl/layer_00": 3.0})
    for step, grey in ((100, 10), (200, 250)):
        life.tracker.image(step, "samples", picture(place / "run" / f"samples_{step}.png", grey))
    (place / "run" / "config.yaml").write_text("seed: 0\n")
    life.tracker.artifact(place / "run" / "config.yaml")
    life.tracker.close("FINISHED")

    run = only_run(place)
    assert run.info.run_id == life.tracker.run_id == json.loads((place / "run" / "mlflow.json").read_text())["run_id"]
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "train.lr": "0.001",
        "model.norm": "group",
        "model.scales": "[1, 2]",
        "resume": "null",
    }
    assert run.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert run.data.tags["git.dirty"] == "true"
    assert run.data.tags["world_size"] == "2"
    assert run.data.tags["mlflow.loggedImages"] == "True"  # what the UI's image grid looks for
    assert history(place, "train/nelbo_nats") == [(100, 30.0), (200, 25.0)]
    assert history(place, "kl/layer_00") == [(100, 2.0), (200, 3.0)]

    store = client(place)
    assert Path(store.download_artifacts(run.info.run_id, "config.yaml")).read_text() == "seed: 0\n"
    images = [file.path for file in store.list_artifacts(run.info.run_id, "images") if file.path.endswith(".png")]
    by_step = {int(path.split("+")[2]): path for path in images}
    assert sorted(by_step) == [100, 200]
    assert all(path.startswith("images/samples+step+") for path in images)
    with Image.open(store.download_artifacts(run.info.run_id, by_step[200])) as image:
        assert image.getpixel((3, 3)) == 250


def test_metrics_carry_the_journals_time(place):
    life = Life(place)
    life.metrics(100, x=1.0)
    (metric,) = client(place).get_metric_history(life.tracker.run_id, "x")
    assert metric.timestamp == round(1000 * read(life.journal.path)[0]["time"])


def test_killed_and_resumed_it_is_one_run_with_each_step_once(place):
    life = Life(place)
    for step in (100, 200, 300):
        life.metrics(step, x=step / 100)
    life.metrics(300, only_late=1.0)
    life.tracker.image(300, "samples", picture(place / "run" / "samples.png", 9))
    # SIGKILL here: no close. The last checkpoint is of 200.
    resumed = Life(place, resume_at=200)
    assert only_run(place).info.status == "RUNNING"
    for step in (300, 400):
        resumed.metrics(step, x=-step / 100)
    resumed.tracker.image(300, "samples", picture(place / "run" / "samples.png", 9))
    resumed.tracker.close("FINISHED")

    assert history(place, "x") == [(100, 1.0), (200, 2.0), (300, 3.0), (400, -4.0)]
    assert history(place, "only_late") == [(300, 1.0)]
    assert len(client(place).list_artifacts(only_run(place).info.run_id, "images")) == 2  # the PNG and its small copy
    assert only_run(place).info.status == "FINISHED"


def test_what_the_store_missed_before_a_kill_is_sent_on_resume(place):
    life = Life(place)
    life.metrics(100, x=1.0)
    life.journal.metrics(200, {"x": 2.0, "y": 5.0})  # killed before MLflow had it
    Life(place, resume_at=200)
    assert history(place, "x") == [(100, 1.0), (200, 2.0)]
    assert history(place, "y") == [(200, 5.0)]


def test_a_continued_run_may_change_a_param(place, caplog):
    Life(place, params={"engine.stage": 1})
    Life(place, resume_at=0, params={"engine.stage": 2, "engine.fresh": "yes"})
    assert only_run(place).data.params == {"engine.stage": "1", "engine.fresh": "yes"}
    assert warnings_in(caplog) == []


def test_the_limits_of_mlflow_are_kept(place, caplog):
    params = {f"many.p{i:03d}": i for i in range(250)} | {"long": "x" * 10_000, "key with (brackets)": 1}
    life = Life(place, params=params)
    life.metrics(100, **{f"many/m{i:04d}": float(i) for i in range(1500)}, **{"odd(γ)": 1.0})
    assert warnings_in(caplog) == []
    run = only_run(place)
    assert len(run.data.params) == 252
    assert len(run.data.params["long"]) == 6000
    assert "MLflow's limit" in run.data.params["long"]
    assert run.data.params["key with _brackets_"] == "1"
    assert len(run.data.metrics) == 1501
    assert run.data.metrics["odd_γ_"] == 1.0


def test_nan_and_infinity(place, caplog):
    life = Life(place)
    life.metrics(100, a=math.nan, b=math.inf)
    run = only_run(place)
    assert math.isnan(run.data.metrics["a"])
    assert run.data.metrics["b"] >= 1.7e308  # a database's stand-in for infinity
    assert warnings_in(caplog) == []


@pytest.mark.parametrize(("status", "reason"), [("FAILED", "ValueError: no such shard"), ("KILLED", "SIGTERM")])
def test_the_end_is_told(place, status, reason):
    Life(place).tracker.close(status, reason)
    run = only_run(place)
    assert run.info.status == status
    assert run.data.tags["reason"] == reason


def test_the_environment_wins(place, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    first = Life(place, uri="sqlite:////nowhere/mlflow.db", run_name="named")
    assert only_run(place, "theirs").info.run_name == "named"

    monkeypatch.setenv("MLFLOW_RUN_ID", first.tracker.run_id)
    (place / "run" / "mlflow.json").unlink()
    assert Life(place).tracker.run_id == first.tracker.run_id


def test_another_store_gets_the_whole_run(place, fresh_store):
    life = Life(place)
    life.metrics(100, x=1.0)
    shutil.copy(fresh_store, place / "mlflow.db")
    moved = Life(place, resume_at=100)
    assert moved.tracker.run_id != life.tracker.run_id
    assert history(place, "x") == [(100, 1.0)]


def test_an_unwritable_store_is_one_warning(place, caplog):
    life = Life(place, uri="sqlite:////proc/nowhere/mlflow.db")
    life.metrics(100, x=1.0)
    life.tracker.image(100, "samples", place / "missing.png")
    life.tracker.artifact(place / "missing.yaml")
    life.tracker.close("FAILED", "and this is not hidden")
    (message,) = warnings_in(caplog)
    assert "sqlite:////proc/nowhere/mlflow.db" in message
    assert "metrics.jsonl holds every figure" in message
    assert "tracking.mlflow=false" in message
    assert life.tracker.run_id is None
    assert [row["x"] for row in read(life.journal.path)] == [1.0]


def test_a_store_that_comes_back_has_everything_at_the_end(place, caplog):
    def database(statement: str) -> None:
        with sqlite3.connect(place / "mlflow.db") as connection:
            connection.execute(statement)

    life = Life(place)
    life.metrics(100, x=1.0)
    database("ALTER TABLE metrics RENAME TO away")
    life.metrics(200, x=2.0)
    life.metrics(300, x=3.0)
    life.tracker.image(300, "samples", picture(place / "run" / "samples.png", 9))
    database("ALTER TABLE away RENAME TO metrics")
    life.tracker.close("FINISHED")

    (message,) = warnings_in(caplog)
    assert "no such table: metrics" in message
    assert history(place, "x") == [(100, 1.0), (200, 2.0), (300, 3.0)]
    assert len(client(place).list_artifacts(life.tracker.run_id, "images")) == 2
    assert only_run(place).info.status == "FINISHED"


def test_a_password_reaches_neither_the_store_nor_the_log(place, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    secret = "hunter2"
    uri = f"postgresql://user:{secret}@localhost:9/mlflow"
    life = Life(place, params={"tracking.uri": uri})
    life.tracker.close("FAILED", f"OSError: {uri}")
    assert only_run(place).data.params["tracking.uri"] == "postgresql://***@localhost:9/mlflow"
    assert secret not in only_run(place).data.tags["reason"]
    Life(place, uri=f"http://user:{secret}@localhost:9")
    assert len(warnings_in(caplog)) == 1
    assert secret not in caplog.text


def test_a_missing_store_and_its_folder_are_created(place):
    life = Life(place, uri=f"sqlite:///{place}/new/folder/mlflow.db")
    life.metrics(100, x=1.0)
    run = MlflowClient(f"sqlite:///{place}/new/folder/mlflow.db").get_run(life.tracker.run_id)
    assert run.data.metrics == {"x": 1.0}


def test_a_kill_while_the_store_is_created_does_no_harm(place, fresh_store):
    (place / "mlflow.db").unlink()
    (place / "mlflow.db.tmp").write_bytes(fresh_store.read_bytes()[:50_000])  # half a database
    life = Life(place)
    life.metrics(100, x=1.0)
    assert history(place, "x") == [(100, 1.0)]


@pytest.mark.slow
def test_runs_that_start_at_once_on_a_missing_store(tmp_path):
    def start(name: str) -> subprocess.Popen:
        (tmp_path / name).mkdir()
        script = f"""
from pathlib import Path
from attvae.tracking.config import TrackingConfig
from attvae.tracking.jsonl import Journal
from attvae.tracking.mlflow_tracker import MlflowTracker
folder = Path({name!r})
MlflowTracker(TrackingConfig(), folder, Journal(folder / "metrics.jsonl", None), {{}}, {{}}).close("FINISHED")
"""
        return subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    processes = [start(f"run{i}") for i in range(4)]
    assert [process.communicate()[1] for process in processes] == [""] * 4
    store = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    runs = store.search_runs([store.get_experiment_by_name("attvae").experiment_id])
    assert sorted((run.info.run_name, run.info.status) for run in runs) == [(f"run{i}", "FINISHED") for i in range(4)]
