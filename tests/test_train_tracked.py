"""Trainings that are tracked by a real MLflow server, and what reaches it."""

import json
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from launched import PLAIN, command, run, start, wait_for
from mlflow import MlflowClient
from mlflow_server import Server, mlflow_server

from attvae.sync import sync
from attvae.tracking.jsonl import read

SECRETS = {
    "MLFLOW_TRACKING_PASSWORD": "Planted-Password-1",
    "AWS_SECRET_ACCESS_KEY": "Planted/Secret+Key2",
    "HF_TOKEN": "hf_PlantedTokenNumber3",
}
IN_THE_URL, IN_AN_OVERRIDE = "Planted-In-The-Url-4", "Planted-Override-5"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as server:
        yield server


def sent_to(uri: str) -> list[str]:
    return ["tracking.mlflow=true", f"tracking.uri={uri}"]


def only_run(server: Server, name: str):
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("attvae")
    [found] = client.search_runs([experiment.experiment_id], f"tags.mlflow.runName = '{name}'")
    return found


def stored(server: Server, name: str) -> Counter[tuple[str, int]]:
    client, found = MlflowClient(server.uri), only_run(server, name)
    return Counter(
        (metric.key, metric.step)
        for key in found.data.metrics
        for metric in client.get_metric_history(found.info.run_id, key)
    )


def journalled(out: Path) -> Counter[tuple[str, int]]:
    return Counter(
        (name, int(row["samples_seen"]))
        for row in read(out / "metrics.jsonl")
        for name in row
        if name not in ("samples_seen", "time")
    )


@pytest.mark.slow
def test_killed_and_resumed_it_is_one_run_with_one_curve_and_no_secret_in_it(
    server: Server, digits: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    address = server.uri.replace("://", f"://me:{IN_THE_URL}@")
    overrides = [*sent_to(address), f"tracking.artifacts=s3://bucket/?token={IN_AN_OVERRIDE}"]
    process = start(command(digits, out, *overrides), **SECRETS)
    assert wait_for((out / "checkpoints" / "000000001000").exists, 120)
    assert wait_for((out / "mlflow.json").exists, 60)
    process.kill()
    said = process.communicate()[0]
    (out / "mlflow.json").unlink()  # the checkpoint knows the run too
    said += run(command(digits, out, *overrides), **SECRETS)

    assert max(stored(server, "killed").values()) == 1
    assert stored(server, "killed") == journalled(out)
    found = only_run(server, "killed")
    assert found.info.status == "FINISHED"
    assert "reason" not in found.data.tags
    assert found.data.tags["resumed_from"].endswith("checkpoints/000000001000")

    client = MlflowClient(server.uri)
    artifacts = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert {"config.yaml", "command.txt", "environment.json", "deepspeed.json", "summary.json"} <= artifacts
    assert {"report.html", "images"} <= artifacts
    config = Path(client.download_artifacts(found.info.run_id, "config.yaml", str(tmp_path))).read_text()
    assert f"uri: {server.uri.replace('://', '://***@')}" in config
    places = [path for path in server.log.parent.rglob("*") if path.is_file()]
    texts = [said.encode(), *(path.read_bytes() for path in places)]
    for secret in (*SECRETS.values(), IN_THE_URL, IN_AN_OVERRIDE):
        assert [text[:80] for text in texts if secret.encode() in text] == []
    assert IN_THE_URL in (out / "config.yaml").read_text(), "the run folder is the user's own"


@pytest.mark.slow
def test_a_server_that_is_away_costs_a_run_nothing_and_sync_sends_all(
    server: Server, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "away"
    said = run(command(digits, out, PLAIN, *sent_to("http://127.0.0.1:9")))
    assert said.count("MLflow at http://127.0.0.1:9 takes no data") == 1
    assert f"`attvae sync {out}` sends the rest to MLflow" in said
    assert json.loads((out / "status.json").read_text())["status"] == "FINISHED"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    assert "FINISHED" in sync(out)
    assert stored(server, "away") == journalled(out)


@pytest.mark.slow
def test_how_a_run_ended_is_told(server: Server, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "ended"
    process = start(command(digits, out, PLAIN, *sent_to(server.uri), "train.samples=1000000"))
    assert wait_for((out / "checkpoints" / "000000001000").exists, 120)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    found = only_run(server, "ended")
    assert found.info.status == "KILLED"
    assert "SIGTERM" in found.data.tags["reason"]

    diverged = tmp_path / "diverged"
    fails = ["train.lr=1e6", "train.roll_back_after=3"]
    run(command(digits, diverged, PLAIN, *sent_to(server.uri), *fails), expected=1)
    found = only_run(server, "diverged")
    assert found.info.status == "FAILED"
    assert found.data.tags["reason"].startswith("DivergedError: training diverged")


@pytest.mark.slow
def test_after_a_roll_back_no_step_appears_twice(server: Server, digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "rolled-back"
    faulty = command(digits, out, "train.roll_back_after=4", *sent_to(server.uri))
    faulty[1] = "tests/faulty_train.py"
    assert "rolled back from 1,600 to 1,000 samples" in run(faulty, FAULT="nan -1 13 4")
    assert stored(server, "rolled-back") == journalled(out)
    assert only_run(server, "rolled-back").info.status == "FINISHED"
