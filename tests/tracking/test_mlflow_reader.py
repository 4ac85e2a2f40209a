"""Runs that a stranger's MLflow client has stored, as `attvae compare` reads them. The store is a real SQLite file."""

import json
import math
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow_server import hanging_server, mlflow_server
from PIL import Image
from spawn import free_port
from typer.testing import CliRunner
from written_runs import row, write_run

from attvae.cli import app
from attvae.compare.runs import read_runs
from attvae.compare.tables import all_tables
from attvae.tracking.config import TrackingConfig
from attvae.tracking.mlflow_reader import read
from attvae.tracking.recorded import Ending
from attvae.tracking.shipper import Sender


@pytest.fixture
def uri(tmp_path, fresh_store, monkeypatch) -> str:
    """An empty store, and no MLflow settings around."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(fresh_store, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def store_run(client: MlflowClient, artifacts: str | None, name: str = "theirs") -> str:
    """A run of two rows and two pictures, in an experiment of its own; its id."""
    run_id = client.create_run(client.create_experiment(name, artifacts), run_name=name).info.run_id
    client.log_batch(
        run_id,
        metrics=[
            Metric("val/nelbo_nats", 9.5, 1_000_250, 100),
            Metric("val/nelbo_nats", 8.5, 1_010_250, 200),
            Metric("kl/layer_00", math.nan, 1_000_250, 100),
            Metric("kl/layer_00", math.inf, 1_010_250, 200),
            Metric("kl/layer_00", 7.0, 1_099_000, 200),  # a step once more, later
            Metric("kl/layer_01", -math.inf, 1_010_250, 200),
        ],
        params=[Param("train.lr", "0.1"), Param("model.norm", "group")],
    )
    client.set_tag(run_id, "dataset_fingerprint", "abc")
    for step, grey in ((100, 10), (200, 250)):
        client.log_image(run_id, Image.new("L", (12, 8), grey), key="samples", step=step, synchronous=True)
    client.set_terminated(run_id, "KILLED")
    return run_id


def check_run(run_id: str, uri: str, place: Path) -> None:
    run = read(run_id, uri)
    assert (run.name, run.source, run.status) == ("theirs", run_id, "KILLED")
    assert run.config == {"train.lr": "0.1", "model.norm": "group"}
    assert run.tags["dataset_fingerprint"] == "abc"
    assert run.metrics == {"val/nelbo_nats", "kl/layer_00", "kl/layer_01"}
    assert run.series("val/nelbo_nats") == [(100, 0.0, 9.5), (200, 10.0, 8.5)]
    first, second = run.series("kl/layer_00")
    assert math.isnan(first.value)
    assert second == (200, 10.0, math.inf)
    assert run.series("kl/layer_01") == [(200, 10.0, -math.inf)]
    assert run.pictures.keys() == {("samples", 100), ("samples", 200)}
    path = place / "picture.png"
    path.write_bytes(run.pictures["samples", 200]())
    with Image.open(path) as image:
        assert (image.format, image.size, image.getpixel((3, 3))) == ("PNG", (12, 8), 250)


def test_a_run_that_a_client_has_stored(uri, tmp_path):
    run_id = store_run(MlflowClient(uri), (tmp_path / "artifacts").as_uri())
    check_run(run_id, uri, tmp_path)


@pytest.mark.slow
def test_a_run_on_a_server_that_has_the_artifacts(tmp_path):
    with mlflow_server(tmp_path) as server:
        run_id = store_run(MlflowClient(server.uri), None)
        check_run(run_id, server.uri, tmp_path)


def test_files_of_the_run_go_before_params_that_cannot_change(uri, tmp_path):
    client = MlflowClient(uri)
    run_id = store_run(client, (tmp_path / "artifacts").as_uri())
    client.log_text(run_id, "train: {lr: 0.2}\nmodel: {long: " + 7000 * "x" + "}\n", "config.yaml")
    client.log_text(run_id, json.dumps({"parameters": 42}), "summary.json")
    run = read(run_id, uri)
    assert run.config == {"train": {"lr": 0.2}, "model": {"long": 7000 * "x"}}
    assert run.summary == {"parameters": 42}


def test_folder_and_mlflow_tell_the_same(uri, tmp_path):
    rows = [
        row(100 * i, 1e9 + 2.125 * i, val__nelbo_nats=30 / i, val__kl_nats="NaN", perf__images_per_s=7.5, x="Infinity")
        for i in range(1, 5)
    ]
    about = {"dataset": {"name": "d", "version": "1", "fingerprint": "f", "path": "d", "samples": 9, "spec": {}}}
    config = {"model": {"num_layers": 3}, "train": {"lr": 1e-3}, "resume": None}
    folder = write_run(
        tmp_path / "mine", rows, config, {("samples", 400): 7}, environment=about, summary={"parameters": 3}
    )
    settings = TrackingConfig(uri=uri, artifacts=str(tmp_path / "artifacts"))
    sender = Sender(settings, Path(folder), {"train.lr": 1e-3})
    sender.send(Ending("FINISHED"))
    sender.close()
    run_id = json.loads((tmp_path / "mine" / "mlflow.json").read_text())["run_id"]

    here, there = read_runs([folder, run_id], uri)
    assert (here.name, there.name) == (folder, f"mine {run_id[:8]}")
    assert (here.config, here.metrics, here.summary) == (there.config, there.metrics, there.summary)
    for metric in here.metrics:
        assert str(here.series(metric)) == str(there.series(metric))  # as text NaN equals NaN
    assert here.pictures["samples", 400]() == there.pictures["samples", 400]()
    for table in all_tables([here, there]):
        if table.name not in ("runs", "config"):
            assert table.rows[0][1:] == table.rows[1][1:]


def compare(*arguments: str):
    return CliRunner().invoke(app, ["compare", *arguments])


def test_the_command_takes_ids_from_the_store_that_is_named(uri, tmp_path, monkeypatch):
    run_id = store_run(MlflowClient(uri), (tmp_path / "artifacts").as_uri())
    folder = write_run(tmp_path / "mine", [row(100, 0, val__nelbo_nats=1.25)])
    page = tmp_path / "page.html"
    named = compare(folder, run_id, "--tracking-uri", uri, "--out", str(page))
    assert named.exit_code == 0, named.output
    assert "9.5000" in named.output
    assert 'alt="samples of theirs at 200 samples seen"' in page.read_text()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert compare(folder, run_id).output == named.output.replace(f"page: {page}\n", "")


def test_an_unknown_id_is_bad_input(uri, tmp_path):
    result = compare(write_run(tmp_path / "mine", []), 32 * "a", "--tracking-uri", uri)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert f"has no run {32 * 'a'}" in result.stderr
    assert "--tracking-uri" in result.stderr


def test_a_store_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder = write_run(tmp_path / "mine", [])
    with hanging_server() as silent:
        for address in (f"http://me:hunter2@127.0.0.1:{free_port()}", silent):
            result = compare(folder, 32 * "a", "--tracking-uri", address)
            assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1), result.stderr
            assert f"the run {32 * 'a'} cannot be read from MLflow at http://" in result.stderr
            assert "hunter2" not in result.output
