"""What a stranger's MLflow client finds. The store is a real SQLite file: created once (about 2 s), then copied."""

import json
import logging
import math
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_TIMEOUT
from PIL import Image

from attvae.tracking import shipper
from attvae.tracking.config import TrackingConfig
from attvae.tracking.jsonl import Journal, read
from attvae.tracking.mlflow_store import SentByAnotherError
from attvae.tracking.recorded import Ending
from attvae.tracking.shipper import Sender

RUNNING = Ending("RUNNING")


@pytest.fixture
def place(tmp_path, fresh_store, monkeypatch) -> Path:
    """A folder with an empty store and an empty run folder, and no MLflow settings around."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    shutil.copy(fresh_store, tmp_path / "mlflow.db")
    (tmp_path / "run" / "images").mkdir(parents=True)
    return tmp_path


class Life:
    """One process's life of a run: the journal, and what sends it."""

    def __init__(self, place: Path, resume_at: int | None = None, params=None, **config) -> None:
        self.run = place / "run"
        self.journal = Journal(self.run / "metrics.jsonl", resume_at)
        settings = TrackingConfig(
            **{"uri": f"sqlite:///{place}/mlflow.db", "artifacts": str(place / "mlartifacts"), **config}
        )
        self.sender = Sender(settings, self.run, {"train.lr": 1e-3} if params is None else params)

    def metrics(self, samples_seen: int, **values: float) -> None:
        self.journal.metrics(samples_seen, values)
        self.sender.send(RUNNING)

    def picture(self, name: str, samples_seen: int, grey: int) -> None:
        Image.new("L", (12, 8), grey).save(self.run / "images" / f"{name}-{samples_seen:012d}.png")

    def end(self, *ending) -> None:
        self.sender.send(Ending(*ending))
        self.sender.close()


def client(place: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{place}/mlflow.db")


def only_run(place: Path, experiment: str = "attvae"):
    (run,) = client(place).search_runs([client(place).get_experiment_by_name(experiment).experiment_id])
    return run


def history(place: Path, key: str) -> list[tuple[int, float]]:
    run_id = only_run(place).info.run_id
    return sorted((metric.step, metric.value) for metric in client(place).get_metric_history(run_id, key))


def run_id_of(place: Path) -> str:
    return json.loads((place / "run" / "mlflow.json").read_text())["run_id"]


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


ENVIRONMENT = {
    "packages": {"torch": "2.13.0"},
    "git": {"commit": "c0ffee", "dirty": True},
    "hosts": ["node-a", "node-b"],
    "ranks": 2,
    "zero_stage": 1,
    "resumed_from": None,
    "dataset": {
        "name": "digits",
        "version": "1",
        "fingerprint": "ab" * 16,
        "path": "s3://user:hunter2@bucket/digits",
        "samples": {"train": 1400},
        "spec": {"height": 8},
    },
}


def test_a_client_finds_the_run_and_all_it_holds(place):
    life = Life(place, params={"train.lr": 1e-3, "model.norm": "group", "model.scales": [1, 2], "resume": None})
    (place / "run" / "environment.json").write_text(json.dumps(ENVIRONMENT))
    (place / "run" / "config.yaml").write_text("seed: 0\n")
    for step, nelbo, kl, grey in ((100, 30.0, 2.0, 10), (200, 25.0, 3.0, 250)):
        life.picture("samples", step, grey)
        life.metrics(step, **{"train/nelbo_nats": nelbo, "kl/layer_00": kl})
    life.end("FINISHED", "", 1_800_000_000.5)

    run = only_run(place)
    assert run.info.run_id == run_id_of(place)
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    assert run.info.end_time == 1_800_000_000_500
    assert run.data.params == {
        "train.lr": "0.001",
        "model.norm": "group",
        "model.scales": "[1, 2]",
        "resume": "null",
    }
    expected = {
        "mlflow.source.git.commit": "c0ffee",  # what the UI's column of versions shows
        "git.commit": "c0ffee",
        "git.dirty": "true",
        "hosts": "node-a, node-b",
        "ranks": "2",
        "zero_stage": "1",
        "dataset": "digits 1",
        "dataset_fingerprint": "ab" * 16,
        "version.torch": "2.13.0",
        "mlflow.loggedImages": "True",  # what the UI's image grid looks for
    }
    assert run.data.tags.items() >= expected.items()
    assert "resumed_from" not in run.data.tags
    assert run.data.tags["mlflow.user"] == pwd.getpwuid(os.getuid()).pw_name
    [dataset_input] = run.inputs.dataset_inputs
    assert (dataset_input.dataset.name, dataset_input.dataset.digest) == ("digits 1", "ab" * 16)
    assert json.loads(dataset_input.dataset.source) == {"uri": "s3://***@bucket/digits"}
    assert [(tag.key, tag.value) for tag in dataset_input.tags] == [("mlflow.data.context", "training")]
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
    (metric,) = client(place).get_metric_history(run_id_of(place), "x")
    assert metric.timestamp == only_run(place).info.start_time == round(1000 * read(life.journal.path)[0]["time"])


def test_killed_and_resumed_it_is_one_run_with_each_step_once(place):
    life = Life(place)
    for step in (100, 200, 300):
        life.metrics(step, x=step / 100)
    life.picture("samples", 300, 9)
    life.metrics(300, only_late=1.0)
    life.sender.close()  # with the process, by SIGKILL. The last checkpoint is of 200.
    resumed = Life(place, resume_at=200)
    resumed.sender.send(RUNNING)
    assert only_run(place).info.status == "RUNNING"
    for step in (300, 400):
        resumed.metrics(step, x=-step / 100)
    resumed.picture("samples", 300, 9)
    resumed.end("FINISHED")

    assert history(place, "x") == [(100, 1.0), (200, 2.0), (300, 3.0), (400, -4.0)]
    assert history(place, "only_late") == [(300, 1.0)]
    assert len(client(place).list_artifacts(only_run(place).info.run_id, "images")) == 2  # the PNG and its small copy
    assert only_run(place).info.status == "FINISHED"


def test_rolled_back_no_step_appears_twice(place):
    life = Life(place)
    for step in (100, 200, 300):
        life.metrics(step, x=step / 100)
    life.journal = Journal(life.journal.path, resume_at=100)
    life.sender.read_anew()
    for step in (200, 300, 400):
        life.metrics(step, x=-step / 100)
    assert history(place, "x") == [(100, 1.0), (200, 2.0), (300, 3.0), (400, -4.0)]


def test_what_the_store_missed_before_a_kill_is_sent_on_resume(place):
    life = Life(place)
    life.metrics(100, x=1.0)
    life.journal.metrics(200, {"x": 2.0, "y": 5.0})  # killed before MLflow had it
    life.sender.close()
    Life(place, resume_at=200).sender.send(RUNNING)
    assert history(place, "x") == [(100, 1.0), (200, 2.0)]
    assert history(place, "y") == [(200, 5.0)]


def test_a_run_whose_creation_was_not_noted_is_found_again(place):
    life = Life(place)
    life.metrics(100, x=1.0)
    life.sender.close()
    note = place / "run" / "mlflow.json"
    noted = json.loads(note.read_text())
    note.write_text(json.dumps({"key": noted["key"]}))  # killed between MLflow's answer and the note
    Life(place, resume_at=100).metrics(200, x=2.0)
    assert run_id_of(place) == noted["run_id"]
    assert history(place, "x") == [(100, 1.0), (200, 2.0)]


@pytest.mark.parametrize("damaged", ["", "[]", "{half"])
def test_an_unreadable_note_of_the_run_is_as_none(place, damaged):
    (place / "run" / "mlflow.json").write_text(damaged)  # what a power cut may leave
    Life(place).metrics(100, x=1.0)
    assert run_id_of(place) == only_run(place).info.run_id


def test_files_are_sent_once_and_not_again_when_the_store_is_back(place, monkeypatch):
    life = Life(place)
    diff = place / "run" / "git.diff"
    diff.write_text("+one = 1\n")
    sent = []
    log_text = MlflowClient.log_text
    monkeypatch.setattr(MlflowClient, "log_text", lambda self, *args: (sent.append(args[1:]), log_text(self, *args)))
    for _ in range(2):
        life.sender.send(RUNNING)
        life.sender.close()  # what an outage does
    assert sent == [("+one = 1\n", "git.diff")]
    diff.write_text("+one = 22\n")
    life.sender.send(RUNNING)
    assert sent[1:] == [("+one = 22\n", "git.diff")]


def test_a_model_is_given_time_to_arrive(place, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    (place / "run" / "model").mkdir()
    seconds = []
    monkeypatch.setattr(shipper, "log_model", lambda *_: seconds.append(MLFLOW_HTTP_REQUEST_TIMEOUT.get()))
    Life(place).end("FINISHED")
    assert [*seconds, MLFLOW_HTTP_REQUEST_TIMEOUT.get()] == [300, 10]


def test_what_is_sent_already_is_not_sent_again(place, monkeypatch):
    life = Life(place)
    life.picture("samples", 100, 9)
    life.metrics(100, x=1.0)
    life.end("FINISHED")
    sent = []
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *args, **options: sent.append(options))
    monkeypatch.setattr(MlflowClient, "log_image", lambda *args, **options: sent.append(options))
    monkeypatch.setattr(MlflowClient, "set_terminated", lambda *args, **options: sent.append(options))
    again = Life(place, resume_at=100)
    again.end("FINISHED")
    assert sent == []
    assert (again.sender.figures, again.sender.pictures) == (0, 0)


def test_a_picture_whose_small_copy_is_missing_is_completed(place):
    life = Life(place)
    life.picture("samples", 100, 9)
    life.metrics(100, x=1.0)
    life.sender.close()
    before = {path.name for path in (place / "mlartifacts").rglob("*+timestamp+*")}
    [small] = (place / "mlartifacts").rglob("*.webp")  # a server was killed between the two
    small.unlink()
    Life(place, resume_at=100).sender.send(RUNNING)
    assert {path.name for path in (place / "mlartifacts").rglob("*+timestamp+*")} == before
    with Image.open(small) as image:
        assert image.convert("L").getpixel((3, 3)) == pytest.approx(9, abs=3)


def test_a_continued_run_may_change_a_param(place, caplog):
    Life(place, params={"engine.stage": 1}).end("KILLED")
    Life(place, resume_at=0, params={"engine.stage": 2, "engine.fresh": "yes"}).sender.send(RUNNING)
    assert only_run(place).data.params == {"engine.stage": "1", "engine.fresh": "yes"}
    assert warnings_in(caplog) == []


def test_the_limits_of_mlflow_are_kept(place, caplog):
    params = {f"many.p{i:03d}": i for i in range(250)} | {"long": "γ" * 10_000, "key with (brackets)": 1}
    life = Life(place, params=params)
    paths = {"b//b": 1.0, "/c": 2.0, "d/": 3.0, "./e/../f": 4.0, "..g": 5.0, "": 6.0}
    life.metrics(100, **{f"many/m{i:04d}": float(i) for i in range(1500)}, **{"odd(γ)": 1.0}, **paths)
    for step, name in ((200, "."), (300, "..")):
        life.metrics(step, **{name: float(step)})
    names, length = sorted(warnings_in(caplog), key=lambda text: "characters" in text)
    assert "'key with (brackets)': it is 'key with _brackets_' there" in names
    assert "long has 10,000 characters, MLflow takes 6,000" in length
    run = only_run(place)
    assert len(run.data.params) == 252
    assert len(run.data.params["long"]) == 6000
    assert "MLflow's limit" in run.data.params["long"]
    assert run.data.params["key with _brackets_"] == "1"
    assert len(run.data.metrics) == 1507
    assert run.data.metrics["odd_γ_"] == 1.0
    mended = {"b/b": 1.0, "c": 2.0, "d": 3.0, "e/f": 4.0, "_.g": 5.0, "_": 300.0}
    assert run.data.metrics.items() >= mended.items()
    assert history(place, "_") == [(100, 6.0), (200, 200.0), (300, 300.0)]


def test_nan_and_infinity(place, caplog):
    life = Life(place)
    life.metrics(100, a=math.nan, b=math.inf)
    life.metrics(200, a=math.nan, b=-math.inf)
    run = only_run(place)
    assert math.isnan(run.data.metrics["a"])
    assert run.data.metrics["b"] <= -1.7e308  # a database's stand-in for infinity
    (message,) = warnings_in(caplog)
    assert "a is nan at 100 samples" in message
    assert "train.lr" in message


@pytest.mark.parametrize(("status", "reason"), [("FAILED", "ValueError: no such shard"), ("KILLED", "SIGTERM")])
def test_the_end_is_told_and_forgotten_by_who_goes_on(place, status, reason):
    Life(place).end(status, reason)
    run = only_run(place)
    assert run.info.status == status
    assert run.data.tags["reason"] == reason
    life = Life(place, resume_at=0)
    life.sender.send(RUNNING)
    assert only_run(place).info.status == "RUNNING"
    assert "reason" not in only_run(place).data.tags
    life.end("FINISHED")
    assert only_run(place).info.status == "FINISHED"


def test_the_environment_wins(place, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    Life(place, uri="sqlite:////nowhere/mlflow.db", run_name="named").end("FINISHED")
    assert only_run(place, "theirs").info.run_name == "named"

    first = run_id_of(place)
    monkeypatch.setenv("MLFLOW_RUN_ID", first)
    (place / "run" / "mlflow.json").unlink()
    Life(place).sender.send(RUNNING)
    assert run_id_of(place) == first
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(ValueError, match="there is no run MLFLOW_RUN_ID=0000"):
        Life(place).sender.send(RUNNING)


def test_another_store_gets_the_whole_run_and_the_first_one_is_gone_on_with(place, fresh_store):
    life = Life(place)
    life.metrics(100, x=1.0)
    life.sender.close()
    first = run_id_of(place)
    shutil.copy(fresh_store, place / "other.db")
    Life(place, resume_at=100, uri=f"sqlite:///{place}/other.db").metrics(200, x=2.0)
    moved = run_id_of(place)
    assert moved != first
    other = MlflowClient(f"sqlite:///{place}/other.db")
    assert [metric.step for metric in other.get_metric_history(moved, "x")] == [100, 200]
    Life(place, resume_at=200).sender.send(RUNNING)
    assert run_id_of(place) == first
    assert history(place, "x") == [(100, 1.0), (200, 2.0)]


def test_a_deleted_experiment_and_a_deleted_run_are_named_with_the_remedy(place):
    life = Life(place)
    life.metrics(100, x=1.0)
    run_id = run_id_of(place)
    client(place).delete_run(run_id)
    life.sender.close()
    with pytest.raises(ValueError, match=f"mlflow runs restore --run-id {run_id}"):
        Life(place, resume_at=100).sender.send(RUNNING)
    experiment = client(place).get_experiment_by_name("attvae").experiment_id
    client(place).delete_experiment(experiment)
    (place / "run" / "mlflow.json").unlink()
    with pytest.raises(ValueError, match=rf"'attvae' was deleted there: .*restore --experiment-id {experiment}"):
        Life(place, resume_at=100).sender.send(RUNNING)


def test_two_processes_never_send_one_run_folder_at_once(place):
    life = Life(place)
    life.metrics(100, x=1.0)
    script = f"""
from pathlib import Path
from attvae.tracking.config import TrackingConfig
from attvae.tracking.recorded import Ending
from attvae.tracking.shipper import Sender
config = TrackingConfig(uri="sqlite:///{place}/mlflow.db", artifacts="{place}/mlartifacts")
Sender(config, Path("{place}/run"), {{}}).send(Ending("RUNNING"))
"""
    other = [sys.executable, "-c", script]
    refused = subprocess.run(other, capture_output=True, text=True)
    assert SentByAnotherError.__name__ in refused.stderr
    life.sender.close()
    subprocess.run(other, check=True)


def test_a_password_does_not_reach_the_store(place):
    secret = "hunter2"
    uri = f"postgresql://user:{secret}@localhost:9/mlflow"
    life = Life(place, params={"tracking.uri": uri})
    (place / "run" / "config.yaml").write_text(f"tracking:\n  uri: {uri}\n")
    life.end("FAILED", f"OSError: {uri}")
    assert only_run(place).data.params["tracking.uri"] == "postgresql://***@localhost:9/mlflow"
    assert "postgresql://***@localhost:9" in only_run(place).data.tags["reason"]
    stored = [path for path in [place / "mlflow.db", *(place / "mlartifacts").rglob("*")] if path.is_file()]
    assert len(stored) == 2
    assert [path for path in stored if secret.encode() in path.read_bytes()] == []


def test_a_missing_store_and_its_folder_are_created(place):
    Life(place, uri=f"sqlite:///{place}/new/folder/mlflow.db").metrics(100, x=1.0)
    run = MlflowClient(f"sqlite:///{place}/new/folder/mlflow.db").get_run(run_id_of(place))
    assert run.data.metrics == {"x": 1.0}


def test_a_kill_while_the_store_is_created_does_no_harm(place, fresh_store):
    (place / "mlflow.db").unlink()
    (place / "mlflow.db.tmp").write_bytes(fresh_store.read_bytes()[:50_000])  # half a database
    Life(place).metrics(100, x=1.0)
    assert history(place, "x") == [(100, 1.0)]
