"""A run in MLflow: found again or created, and filled. The one place that writes to MLflow's store."""

import fcntl
import getpass
import json
import logging
import math
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from PIL import Image

from attvae.tracking.config import TrackingConfig
from attvae.tracking.jsonl import Row, read
from attvae.tracking.protocol import Status
from attvae.tracking.recorded import Picture
from attvae.tracking.secrets import without_secrets

# MLflow's limits: https://mlflow.org/docs/latest/api_reference/rest-api.html#request-limits
# A request may have 1 MB, and JSON may make six bytes of a letter: so fewer entries than are allowed.
_METRICS_PER_BATCH = 500
_ENTRIES_PER_BATCH = 20
_NAME_LENGTH = 250
_PARAM_LENGTH = 6000
_TAG_LENGTH = 8000
_DIGEST_LENGTH = 36

_SMALL = "+compressed.webp"
_SMALL_PX = 256

_KEY_TAG = "attvae.key"

_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_UPLOAD_TIMEOUT_S = 300

_CLEAN = ("command.txt", "environment.json", "git.diff", "report.html")  # as they were written

# A process that is forked amid an import, such as one that loads data, would wait for ever for the import to end.
_importing = threading.RLock()
os.register_at_fork(before=_importing.acquire, after_in_parent=_importing.release, after_in_child=_importing.release)


class SentByAnotherError(RuntimeError):
    """Another process is sending this run folder just now."""


def connect(uri: str) -> Any:
    """An MlflowClient: nothing is sent home, its logs are silent, a dead server is not waited for long.

    Creates a SQLite store that is missing.
    """
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="1")
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # with the password in it
    # A hidden second try could create a second run; who calls tries again knowing what has arrived.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault(_TIMEOUT, "10")
    with _importing:
        from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(os.environ.get("MLFLOW_LOGGING_LEVEL", "CRITICAL"))

    if store := missing_sqlite_store(uri):
        # Left to itself, MLflow spoils a fresh store when several runs start at once or one is killed in between.
        store.parent.mkdir(parents=True, exist_ok=True)
        with store.with_name(store.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not store.exists():
                aside = store.with_name(store.name + ".tmp")
                aside.unlink(missing_ok=True)
                MlflowClient(f"sqlite:///{aside}").search_experiments(max_results=1)
                aside.replace(store)
    return MlflowClient(uri)


def missing_sqlite_store(uri: str) -> Path | None:
    """The file that `connect` would create."""
    if not uri.startswith("sqlite:///") or "?" in uri:
        return None
    store = Path(uri.removeprefix("sqlite:///"))
    return None if store.exists() else store


@contextmanager
def time_for_an_upload() -> Iterator[None]:
    """A server may store a large file before it answers. MLflow asks the environment at each request."""
    before = os.environ.get(_TIMEOUT)
    os.environ[_TIMEOUT] = str(max(int(before or 0), _UPLOAD_TIMEOUT_S))
    try:
        yield
    finally:
        if before is None:
            del os.environ[_TIMEOUT]
        else:
            os.environ[_TIMEOUT] = before


class StoredRun:
    """One run in the store, and what it holds already. Every method raises what MLflow raises.

    As long as it is open, no other process sends the same run folder.
    """

    def __init__(self, client: Any, config: TrackingConfig, run_dir: Path, remark: Callable[[str, str], None]) -> None:
        """
        Args:
            client: of `connect`.
            run_dir: its mlflow.json names the run to go on with; MLFLOW_RUN_ID goes before it.
            remark: told what MLflow cannot hold as it is: a keyword of the kind, and a sentence.

        Raises:
            SentByAnotherError: by a process that has it open.
            ValueError: the run, or the experiment, was deleted.
        """
        self._run_dir = run_dir
        self._remark = remark
        self._client = client
        self._only = _only_sender(run_dir)
        try:
            run = self._find_or_create(config)
            self.run_id: str = run.info.run_id
            self.experiment_id: str = run.info.experiment_id
            self._stored_params = set(run.data.params)
            self._stored_tags = dict(run.data.tags)
            self._has_dataset = bool(run.inputs and run.inputs.dataset_inputs)
            self._status = run.info.status
            self._last_steps = {metric.key: metric.step for metric in run.to_proto().data.metrics}
            self._list_pictures()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets another process send."""
        self._only.close()

    # -------------------------------------------------------------------------------------------------- what it is

    def describe(self, params: Mapping[str, object], tags: Mapping[str, object]) -> None:
        """Sets params that the run lacks (MLflow never changes one), and tags that have another value."""
        from mlflow.entities import Param, RunTag

        found = {self._name(key): self._value(key, value, _PARAM_LENGTH) for key, value in params.items()}
        missing = [Param(key, value) for key, value in found.items() if key not in self._stored_params]
        for batch in _batches(missing, _ENTRIES_PER_BATCH):
            self._client.log_batch(self.run_id, params=batch)
        labels = {self._name(key): self._value(key, value, _TAG_LENGTH) for key, value in tags.items()}
        changed = [RunTag(key, value) for key, value in labels.items() if self._stored_tags.get(key) != value]
        for batch in _batches(changed, _ENTRIES_PER_BATCH):
            self._client.log_batch(self.run_id, tags=batch)
        self._stored_params |= found.keys()
        self._stored_tags |= labels

    def log_dataset(self, dataset: Mapping[str, Any]) -> None:
        """Names the training data, once: `name`, `version`, `fingerprint`, `path`, `samples`, `spec`."""
        if self._has_dataset or not dataset:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        about = Dataset(
            name=f"{dataset['name']} {dataset['version']}",
            digest=dataset["fingerprint"][:_DIGEST_LENGTH],
            source_type="local" if "://" not in dataset["path"] else "remote",
            source=json.dumps({"uri": without_secrets(dataset["path"])}),
            profile=json.dumps({"samples": dataset["samples"], "spec": dataset["spec"]}),
        )
        self._client.log_inputs(
            self.run_id, datasets=[DatasetInput(about, tags=[InputTag("mlflow.data.context", "training")])]
        )
        self._has_dataset = True

    # ---------------------------------------------------------------------------------------------- what it has seen

    def log_rows(self, rows: Sequence[Row]) -> int:
        """Stores those figures of the journal's rows that come after the last stored step of their name.

        Returns:
            How many.
        """
        from mlflow.entities import Metric

        metrics = []
        for row in rows:
            step = int(row["samples_seen"])
            for key, value in row.items():
                if key in ("samples_seen", "time") or step <= self._last_steps.get(name := self._name(key), -1):
                    continue
                if not math.isfinite(value):
                    self._remark(
                        "not finite",
                        f"{key} is {value} at {step:,} samples (MLflow keeps NaN, and shows infinity as 1.8e308): "
                        "look at train.lr, train.clip_norm and the data",
                    )
                metrics.append(Metric(name, value, round(1000 * row["time"]), step))
        for batch in _batches(metrics, _METRICS_PER_BATCH):
            self._client.log_batch(self.run_id, metrics=batch)
            self._last_steps |= {metric.key: metric.step for metric in batch}
        return len(metrics)

    def log_picture(self, picture: Picture) -> bool:
        """Stores a picture for MLflow's grid of images by step, once for each name and step.

        Returns:
            Whether it was missing.
        """
        key = picture[:2]
        if key in self._stored_pictures:
            return False
        with Image.open(picture.path) as image:
            if key in self._half_stored_pictures:
                image.thumbnail((_SMALL_PX, _SMALL_PX))
                self._client.log_image(self.run_id, image, artifact_file=self._half_stored_pictures[key] + _SMALL)
                self._client.set_tag(self.run_id, "mlflow.loggedImages", "True")
            else:
                self._client.log_image(
                    self.run_id, image, key=picture.name, step=picture.samples_seen, synchronous=True
                )
        self._stored_pictures.add(key)
        return True

    def log_file(self, path: Path) -> None:
        """Stores a text file of the run folder, or replaces it, without the secrets in it."""
        text = path.read_text(errors="replace")
        self._client.log_text(self.run_id, text if path.name in _CLEAN else without_secrets(text), path.name)

    def set_status(self, status: Literal["RUNNING"] | Status, reason: str = "", ended: float | None = None) -> None:
        """
        Args:
            ended: Unix time in seconds; now by default.
        """
        text = self._value("reason", reason, _TAG_LENGTH)
        if reason and self._stored_tags.get("reason") != text:
            self._client.set_tag(self.run_id, "reason", text)
            self._stored_tags["reason"] = text
        elif not reason and "reason" in self._stored_tags:
            self._client.delete_tag(self.run_id, "reason")
            del self._stored_tags["reason"]
        if self._status == status:
            return
        if status == "RUNNING":
            self._client.update_run(self.run_id, status=status)
        else:
            self._client.set_terminated(self.run_id, status=status, end_time=round(1000 * (ended or time.time())))
        self._status = status

    # ------------------------------------------------------------------------------------------------- which run it is

    def _find_or_create(self, config: TrackingConfig) -> Any:
        """The run that MLFLOW_RUN_ID or mlflow.json names, or that an earlier try created, or a new one."""
        note = self._run_dir / "mlflow.json"
        noted = _read(note)
        run = self._named(os.environ.get("MLFLOW_RUN_ID") or noted.get("run_id"))
        if run is None:
            experiment = self._experiment_id(config)
            if "key" in noted:  # what was created, but not noted: the answer was lost, or this process was killed
                wanted = f"tags.`{_KEY_TAG}` = '{noted['key']}'"
                run = next(iter(self._client.search_runs([experiment], wanted, max_results=1)), None)
            else:
                noted["key"] = uuid.uuid4().hex
                _write(note, noted)
            run = run or self._client.create_run(
                experiment,
                start_time=self._started(),
                tags={_KEY_TAG: noted["key"], **_user()},
                run_name=config.run_name or self._run_dir.resolve().name,
            )
        _write(note, noted | {"run_id": run.info.run_id})
        return run

    def _named(self, run_id: str | None) -> Any:
        """The run; None where mlflow.json means a run of another store."""
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return None
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            if run_id == os.environ.get("MLFLOW_RUN_ID"):
                raise ValueError(
                    f"there is no run MLFLOW_RUN_ID={run_id}: unset it, or set the store it is in"
                ) from None
            return None
        if run.info.lifecycle_stage == "deleted":
            raise ValueError(
                f"run {run_id} was deleted there: `mlflow runs restore --run-id {run_id}`, or remove "
                f"{self._run_dir / 'mlflow.json'} for a new run"
            )
        return run

    def _experiment_id(self, config: TrackingConfig) -> str:
        from mlflow.exceptions import MlflowException

        name = config.experiment
        found = self._client.get_experiment_by_name(name)
        if found is None:
            location = None if config.on_server else Path(config.artifacts).resolve().as_uri()
            try:
                return self._client.create_experiment(name, artifact_location=location)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run was first
                    raise
                found = self._client.get_experiment_by_name(name)
        if found.lifecycle_stage == "deleted":
            raise ValueError(
                f"the experiment {name!r} was deleted there: `mlflow experiments restore --experiment-id "
                f"{found.experiment_id}`, or another name in tracking.experiment or MLFLOW_EXPERIMENT_NAME"
            )
        return found.experiment_id

    def _started(self) -> int | None:
        """Of a run that is sent afterwards: the time of its first figures, in ms."""
        journal = self._run_dir / "metrics.jsonl"
        rows = read(journal)
        return round(1000 * rows[0]["time"]) if rows else None

    def _list_pictures(self) -> None:
        """MLflow stores a PNG and then a small copy, which its pages show: only both are a stored picture."""
        paths = [file.path for file in self._client.list_artifacts(self.run_id, "images")]
        pngs = [match for path in paths if (match := re.fullmatch(r"(images/(.+)\+step\+(\d+)\+.+)\.png", path))]
        self._half_stored_pictures = {(match[2], int(match[3])): match[1] for match in pngs}
        self._stored_pictures = {(match[2], int(match[3])) for match in pngs if match[1] + _SMALL in paths}

    # ------------------------------------------------------------------------------------------- what MLflow can hold

    def _name(self, name: str) -> str:
        parts = re.sub(r"[^/\w.\- ]", "_", name)[:_NAME_LENGTH].split("/")
        allowed = "/".join(part for part in parts if part not in ("", ".", "..")) or "_"
        if allowed.startswith(".."):  # MLflow takes it for the way out of a folder
            allowed = "_" + allowed[1:]
        if allowed != name:
            self._remark("name", f"MLflow does not take the name {name!r}: it is {allowed!r} there; choose another")
        return allowed

    def _value(self, key: str, value: object, length: int) -> str:
        text = without_secrets(value if isinstance(value, str) else json.dumps(value, default=str))
        if len(text) <= length:
            return text
        self._remark(
            "length",
            f"{key} has {len(text):,} characters, MLflow takes {length:,}: it is cut there, not in the run folder",
        )
        note = " ... (cut to MLflow's limit; the run folder has it whole)"
        return text[: length - len(note)] + note


def _only_sender(run_dir: Path) -> IO[str]:
    lock = (run_dir / "mlflow.lock").open("a")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
    except (BlockingIOError, PermissionError):
        lock.close()
        raise SentByAnotherError(f"{run_dir} is being sent by another process") from None
    return lock


def _user() -> dict[str, str]:
    """Who shows in the UI's column of users."""
    with suppress(KeyError, OSError, ImportError):  # a container's user may have no name
        return {"mlflow.user": getpass.getuser()}
    return {}


def _read(note: Path) -> dict[str, str]:
    """Empty where it is missing, or unreadable: what it names is then looked for, or made anew."""
    with suppress(FileNotFoundError, ValueError):
        found = json.loads(note.read_text())
        return found if isinstance(found, dict) else {}
    return {}


def _write(note: Path, value: Mapping[str, str]) -> None:
    aside = note.with_name(note.name + ".tmp")
    with aside.open("w") as file:
        file.write(json.dumps(value) + "\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(note)


def _batches(entries: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [entries[start : start + size] for start in range(0, len(entries), size)]
