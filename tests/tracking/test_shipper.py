"""The thread that feeds MLflow: what it costs the training, and what becomes of a store that goes away."""

import logging
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from launched import REPOSITORY, wait_for
from mlflow import MlflowClient
from mlflow_server import ADMIN_PASSWORD, Server, hanging_server, mlflow_server
from PIL import Image
from postgres import postgres

from attvae.sync import sync
from attvae.tracking import shipper as module
from attvae.tracking.config import TrackingConfig
from attvae.tracking.jsonl import Journal, read
from attvae.tracking.mlflow_store import connect
from attvae.tracking.shipper import Shipper


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Short pauses, and no MLflow settings around."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name in ("SEND_EVERY_S", "FIRST_PAUSE_S"):
        monkeypatch.setattr(module, name, 0.05)
    monkeypatch.setattr(module, "LONGEST_PAUSE_S", 0.5)
    for status in module.QUIET_S:
        monkeypatch.setitem(module.QUIET_S, status, 2.0)


class Life:
    """One process's life of a run: the journal, and the thread that follows it."""

    def __init__(self, place: Path, uri: str, resume_at: int | None = None) -> None:
        self.run = place / "run"
        (self.run / "images").mkdir(parents=True, exist_ok=True)
        config = TrackingConfig(uri=uri, artifacts=str(place / "mlartifacts"))
        (self.run / "config.yaml").write_text(f"tracking:\n  uri: {uri}\n  artifacts: {place}/mlartifacts\n")
        self.journal = Journal(self.run / "metrics.jsonl", resume_at)
        self.shipper = Shipper(config, self.run, {"train.lr": 1e-3})
        self.shipper.follow()

    def metrics(self, samples_seen: int, **values: float) -> float:
        """How long the training waited, in seconds."""
        self.journal.metrics(samples_seen, values)
        path = self.run / "images" / f"samples-{samples_seen:012d}.png"
        Image.new("L", (12, 8), 9).save(path)
        begun = time.perf_counter()
        self.shipper.metrics(samples_seen, values)
        self.shipper.image(samples_seen, "samples", path)
        return time.perf_counter() - begun


def stored(uri: str) -> list[tuple[str, int, float]]:
    """Every figure of the only run."""
    client = connect(uri)
    experiment = client.get_experiment_by_name("attvae")
    if experiment is None:
        return []
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) <= 1
    return [
        (name, metric.step, metric.value)
        for run in runs
        for name in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, name)
    ]


def journalled(run: Path) -> list[tuple[str, int, float]]:
    return [
        (name, int(row["samples_seen"]), value)
        for row in read(run / "metrics.jsonl")
        for name, value in row.items()
        if name not in ("samples_seen", "time")
    ]


def status_of(uri: str) -> str:
    client = connect(uri)
    [run] = client.search_runs([client.get_experiment_by_name("attvae").experiment_id])
    return run.info.status


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ------------------------------------------------------------------------------------------- what the training notices


def test_a_server_that_never_answers_costs_the_training_nothing(tmp_path, caplog, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with hanging_server() as uri:
        life = Life(tmp_path, uri)
        waits = []
        for step in range(1, 101):
            waits.append(life.metrics(step, x=float(step)))
            time.sleep(0.03)  # first mlflow is imported meanwhile, then requests wait for their time limit
        begun = time.monotonic()
        life.shipper.finish("KILLED", "SIGTERM")
        assert time.monotonic() - begun < 3.5
    assert sorted(waits)[-2] < 0.005, "all but one, which another process of this machine may have held up"
    (message,) = warnings_in(caplog)
    assert uri in message
    assert "timed out" in message
    assert f"`attvae sync {tmp_path / 'run'}` sends the rest" in capsys.readouterr().err
    assert len(journalled(tmp_path / "run")) == 100


def test_a_process_ends_though_the_server_never_answers(tmp_path):
    script = """
import sys, time
from pathlib import Path
from attvae.tracking import shipper
from attvae.tracking.config import TrackingConfig
shipper.QUIET_S = {"KILLED": 1.0}
run = Path(sys.argv[2])
run.mkdir()
sent = shipper.Shipper(TrackingConfig(uri=sys.argv[1]), run, {})
sent.follow()
time.sleep(4)  # mlflow is imported, a request is on its way
sent.finish("KILLED")
"""
    with hanging_server() as uri:
        begun = time.monotonic()
        command = [sys.executable, "-c", script, uri, str(tmp_path / "run")]
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
        assert time.monotonic() - begun < 25
    assert ended.returncode == 0
    assert "attvae sync" in ended.stderr


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("sqlite:////proc/nowhere/mlflow.db", "No such file or directory: '/proc/nowhere'"),
        ("http://no.such.host.invalid:5000", "Failed to resolve 'no.such.host.invalid'"),
        ("http://me:hunter2@127.0.0.1:9", "Connection refused"),
    ],
)
def test_a_store_out_of_reach_is_one_warning_with_the_remedy(tmp_path, caplog, uri, told):
    life = Life(tmp_path, uri)
    life.metrics(100, x=1.0)
    life.shipper.finish("FAILED", "and this is not hidden")
    (message,) = warnings_in(caplog)
    assert uri.replace("me:hunter2@", "***@") in message
    assert told in message
    assert "metrics.jsonl holds every figure" in message
    assert "tracking.mlflow=false" in message
    assert "MLFLOW_TRACKING_URI" in message
    assert "hunter2" not in caplog.text
    assert journalled(tmp_path / "run") == [("x", 100, 1.0)]


def test_a_store_that_comes_back_has_everything(tmp_path, caplog, capsys, fresh_store):
    def database(statement: str) -> None:
        with sqlite3.connect(tmp_path / "mlflow.db") as connection:
            connection.execute(statement)

    shutil.copy(fresh_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    life = Life(tmp_path, uri)
    life.metrics(100, x=1.0)
    assert wait_for(lambda: len(stored(uri)) == 1, 60)
    database("ALTER TABLE metrics RENAME TO away")
    life.metrics(200, x=2.0)
    assert wait_for(lambda: warnings_in(caplog), 30)
    life.metrics(300, x=3.0)
    database("ALTER TABLE away RENAME TO metrics")
    assert wait_for(lambda: "takes data again" in capsys.readouterr().err, 30)
    life.shipper.finish("FINISHED")

    (message,) = warnings_in(caplog)
    assert "no such table: metrics" in message
    assert sorted(stored(uri)) == [("x", 100, 1.0), ("x", 200, 2.0), ("x", 300, 3.0)]
    assert status_of(uri) == "FINISHED"


def test_a_read_only_store_is_one_warning_with_the_remedy(tmp_path, caplog, fresh_store):
    shutil.copy(fresh_store, tmp_path / "mlflow.db")
    read_only = f"sqlite:///file:{tmp_path}/mlflow.db?mode=ro&uri=true"
    life = Life(tmp_path, read_only)
    life.metrics(100, x=1.0)
    life.shipper.finish("FINISHED")
    (message,) = warnings_in(caplog)
    assert "attempt to write a readonly database" in message
    assert "Make the store writable" in message


def test_a_deleted_experiment_is_one_warning_with_the_remedy(tmp_path, caplog, fresh_store):
    shutil.copy(fresh_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment("attvae"))
    life = Life(tmp_path, uri)
    life.metrics(100, x=1.0)
    life.shipper.finish("FINISHED")
    (message,) = warnings_in(caplog)
    assert "the experiment 'attvae' was deleted there: `mlflow experiments restore --experiment-id 1`" in message
    assert "tracking.experiment" in message


# ----------------------------------------------------------------------------------------------------- real servers


def each_once(uri: str, run: Path) -> bool:
    return Counter(stored(uri)) == Counter(journalled(run))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_a_server_down_at_the_start_killed_amid_the_run_and_down_at_the_end(tmp_path, caplog, backend):
    if backend == "postgresql":
        with postgres(tmp_path / "postgres") as database:
            outages(tmp_path, caplog, database)
    else:
        outages(tmp_path, caplog, None)


def outages(tmp_path: Path, caplog, backend: str | None) -> None:
    server = Server(tmp_path, backend)
    try:
        life = Life(tmp_path, server.uri)
        for step in range(1, 21):
            life.metrics(step, x=step / 7, y=-step)
        assert wait_for(lambda: warnings_in(caplog), 60)
        server.start()
        assert wait_for(lambda: len(stored(server.uri)) == 40, 60)
        for step in range(21, 201):
            life.metrics(step, x=step / 7, y=-step)
            if step == 100:
                server.kill()
            time.sleep(0.01)
        server.start()
        assert wait_for(lambda: len(stored(server.uri)) == 400, 60)
        server.kill()
        life.metrics(201, x=0.5, z=float("nan"), w=float("inf"))
        life.metrics(202, x=0.5)
        life.shipper.finish("FINISHED")
        (life.run / "status.json").write_text('{"status": "FINISHED"}')
        life.shipper._sender.close()  # as the end of the process does
        server.start()
        assert "FINISHED" in sync(life.run)
        assert ": 0 figures and 0 pictures sent" in sync(life.run)

        found = {(name, step): value for name, step, value in stored(server.uri)}
        expected = journalled(life.run)
        assert len(stored(server.uri)) == len(found) == len(expected) == 404
        finite = [(name, step, value) for name, step, value in expected if name in ("x", "y")]
        assert [found[name, step] for name, step, _ in finite] == [value for *_, value in finite]
        assert status_of(server.uri) == "FINISHED"
        client = connect(server.uri)
        [run] = client.search_runs([client.get_experiment_by_name("attvae").experiment_id])
        assert len(client.list_artifacts(run.info.run_id, "images")) == 2 * 202
    finally:
        server.kill()


@pytest.mark.slow
def test_wrong_credentials_are_one_warning_with_the_remedy(tmp_path, caplog, monkeypatch):
    with mlflow_server(tmp_path, app="basic-auth") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not this one")
        life = Life(tmp_path, server.uri)
        life.metrics(100, x=1.0)
        assert wait_for(lambda: warnings_in(caplog), 60)
        (message,) = warnings_in(caplog)
        assert "You are not authenticated" in message
        assert "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in message
        assert "not this one" not in caplog.text
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN_PASSWORD)
        monkeypatch.setitem(module.QUIET_S, "FINISHED", 30.0)
        life.shipper.finish("FINISHED")
        assert stored(server.uri) == [("x", 100, 1.0)]


START = """
import sys
from pathlib import Path
from attvae.tracking.config import TrackingConfig
from attvae.tracking.jsonl import Journal
from attvae.tracking.shipper import Shipper
folder = Path(sys.argv[2])
folder.mkdir()
journal = Journal(folder / "metrics.jsonl", None)
config = TrackingConfig(uri=sys.argv[1], artifacts=f"{folder.parent}/artifacts")
shipper = Shipper(config, folder, {"name": folder.name})
shipper.follow()
for step in range(1, 51):
    journal.metrics(step, {"x": step, "y": -step})
    shipper.metrics(step, {})
shipper.finish("FINISHED")
"""


def start_at_once(place: Path, uri: str) -> None:
    names = [f"run{i}" for i in range(8)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", START, uri, str(place / name)], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True
        )
        for name in names
    ]
    assert [process.communicate()[1] for process in processes] == [""] * 8
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("attvae").experiment_id])
    assert sorted((run.info.run_name, run.info.status) for run in runs) == [(name, "FINISHED") for name in names]
    for run in runs:
        assert sorted(m.step for m in client.get_metric_history(run.info.run_id, "x")) == [*range(1, 51)]


@pytest.mark.slow
def test_eight_that_start_at_once_on_a_missing_sqlite_file(tmp_path):
    start_at_once(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")


@pytest.mark.slow
def test_eight_that_log_at_once_into_one_server(tmp_path):
    with mlflow_server(tmp_path) as server:
        start_at_once(tmp_path, server.uri)
