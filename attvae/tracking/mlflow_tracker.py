"""A run in MLflow, fed from the journal. The only importer of mlflow (design.md: one file per foreign framework)."""

import fcntl
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from attvae.tracking.config import TrackingConfig, without_password
from attvae.tracking.jsonl import Journal, Row, read_from
from attvae.tracking.protocol import Status

# MLflow's limits: https://mlflow.org/docs/latest/api_reference/rest-api.html#request-limits
_METRICS_PER_BATCH = 1000
_ENTRIES_PER_BATCH = 100
_NAME_LENGTH = 250
_PARAM_LENGTH = 6000
_TAG_LENGTH = 8000


class MlflowTracker:
    """Keeps an MLflow run up to date with the run folder; a tracker.

    Metrics are those of the journal, which is written first: whatever MLflow lacks is sent, what it holds is not
    written again. The training never sees an error: the first one is warned about, then everything waits for `close`,
    which tries once more. A later resume sends what is missing even then.
    """

    def __init__(
        self,
        config: TrackingConfig,
        run_dir: Path,
        journal: Journal,
        params: Mapping[str, object],
        tags: Mapping[str, object],
    ) -> None:
        """
        Args:
            run_dir: the run folder; its mlflow.json names the run to go on with.
            params: the resolved config, flattened to dotted keys.
            tags: what else tells runs apart: commit, versions, world size.
        """
        self._config = config.with_environment()
        self._run_dir = run_dir
        self._journal = journal.path
        self._params = params
        self._tags = tags
        self.run_id: str | None = None
        """The id of the MLflow run; None until the store could be reached."""
        self._run: MlflowRun | None = None
        self._sent_bytes = 0
        self._images: list[tuple[int, str, Path]] = []
        self._artifacts: list[Path] = []
        self._failed = False
        self._send()

    def metrics(self, samples_seen: int, values: Mapping[str, float]) -> None:
        """Sends what is new in the journal, which holds these values already."""
        self._send()

    def image(self, samples_seen: int, name: str, path: Path) -> None:
        self._images.append((samples_seen, name, path))
        self._send()

    def artifact(self, path: Path) -> None:
        self._artifacts.append(path)
        self._send()

    def close(self, status: Status, reason: str = "") -> None:
        self._send(closing=(status, reason))

    def _send(self, closing: tuple[Status, str] | None = None) -> None:
        if self._failed and closing is None:
            return
        try:
            if self._run is None:
                self._run = MlflowRun(self._config, self._run_dir)
                self.run_id = self._run.run_id
                self._run.describe(self._params, self._tags)
                self._sent_bytes = 0
            rows, sent_bytes = read_from(self._journal, self._sent_bytes)
            self._run.log_rows(rows)
            self._sent_bytes = sent_bytes
            while self._images:
                self._run.log_image(*self._images[0])
                del self._images[0]
            while self._artifacts:
                self._run.log_artifact(self._artifacts[0])
                del self._artifacts[0]
            if closing is not None:
                self._run.end(*closing)
        except Exception as error:
            self._run = None
            if not self._failed:
                self._failed = True
                self._warn(error)

    def _warn(self, error: Exception) -> None:
        root: BaseException = error  # MLflow and SQLAlchemy wrap what happened in what they were doing
        while root.__cause__ is not None:
            root = root.__cause__
        cause = f"{type(root).__name__}: {root}".splitlines()[0]
        logging.getLogger(__name__).warning(
            without_password(
                f"MLflow at {self._config.uri} takes no data ({cause}). The run goes on, {self._journal} holds every "
                "figure; MLflow is tried again when the run ends or is resumed. Make the store reachable and writable "
                "(tracking.uri or MLFLOW_TRACKING_URI, tracking.experiment), or set tracking.mlflow=false."
            )
        )


class MlflowRun:
    """One run in the store: found again or created. Every method raises what MLflow raises."""

    def __init__(self, config: TrackingConfig, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._client = _connect(config.uri)
        run = self._find() or self._client.create_run(
            _experiment_id(self._client, config), run_name=config.run_name or run_dir.resolve().name
        )
        self.run_id: str = run.info.run_id
        self._remember()
        self._client.update_run(self.run_id, status="RUNNING")
        self._params_stored = set(run.data.params)
        self._last_steps = {metric.key: metric.step for metric in run.to_proto().data.metrics}
        self._images_stored = self._list_images()

    def describe(self, params: Mapping[str, object], tags: Mapping[str, object]) -> None:
        """Sets params that the run lacks (MLflow never changes one) and all tags."""
        from mlflow.entities import Param, RunTag

        values = {_name(key): _shortened(value, _PARAM_LENGTH) for key, value in params.items()}
        missing = [Param(key, value) for key, value in values.items() if key not in self._params_stored]
        labels = [RunTag(_name(key), _shortened(value, _TAG_LENGTH)) for key, value in tags.items()]
        for batch in _batches(missing, _ENTRIES_PER_BATCH):
            self._client.log_batch(self.run_id, params=batch)
        for batch in _batches(labels, _ENTRIES_PER_BATCH):
            self._client.log_batch(self.run_id, tags=batch)

    def log_rows(self, rows: Sequence[Row]) -> None:
        """Stores those figures of the journal's rows that come after the last stored step of their name."""
        from mlflow.entities import Metric

        metrics = [
            Metric(_name(key), value, round(1000 * row["time"]), int(row["samples_seen"]))
            for row in rows
            for key, value in row.items()
            if key not in ("samples_seen", "time") and row["samples_seen"] > self._last_steps.get(_name(key), -1)
        ]
        for batch in _batches(metrics, _METRICS_PER_BATCH):
            self._client.log_batch(self.run_id, metrics=batch)

    def log_image(self, samples_seen: int, name: str, path: Path) -> None:
        """Stores a picture for MLflow's grid of images by step, once for each name and step."""
        if (name, samples_seen) in self._images_stored:
            return
        with Image.open(path) as image:
            self._client.log_image(self.run_id, image, key=name, step=samples_seen)
        self._images_stored.add((name, samples_seen))

    def log_artifact(self, path: Path) -> None:
        """Stores a file at its place in the run folder."""
        folder = path.resolve().parent.relative_to(self._run_dir.resolve()).as_posix()
        self._client.log_artifact(self.run_id, str(path), artifact_path=None if folder == "." else folder)

    def end(self, status: Status, reason: str) -> None:
        if reason:
            self._client.set_tag(self.run_id, "reason", _shortened(reason, _TAG_LENGTH))
        self._client.set_terminated(self.run_id, status=status)

    def _find(self) -> Any:
        """The run that MLFLOW_RUN_ID or mlflow.json names; None if there is none, or if it is not in this store."""
        from mlflow.exceptions import MlflowException

        if given := os.environ.get("MLFLOW_RUN_ID"):
            return self._client.get_run(given)
        if not self._id_file.exists():
            return None
        try:
            return self._client.get_run(json.loads(self._id_file.read_text())["run_id"])
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # another store: a new run there gets everything
                return None
            raise

    @property
    def _id_file(self) -> Path:
        return self._run_dir / "mlflow.json"

    def _remember(self) -> None:
        aside = self._run_dir / "mlflow.json.tmp"
        aside.write_text(json.dumps({"run_id": self.run_id}) + "\n")
        aside.replace(self._id_file)

    def _list_images(self) -> set[tuple[str, int]]:
        """(name, step) of stored pictures. MLflow writes the compressed copy last, so that one counts."""
        names = (
            re.fullmatch(r"images/(.+)\+step\+(\d+)\+timestamp\+.+\+compressed\.webp", file.path)
            for file in self._client.list_artifacts(self.run_id, "images")
        )
        return {(match[1], int(match[2])) for match in names if match}


def _connect(uri: str) -> Any:
    """An MlflowClient: nothing is sent home, our one warning is the only log, a dead server is not waited for long."""
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(os.environ.get("MLFLOW_LOGGING_LEVEL", "CRITICAL"))

    if uri.startswith("sqlite:///"):
        # Left to itself, MLflow spoils a fresh store when several runs start at once or one is killed in between.
        store = Path(uri.removeprefix("sqlite:///"))
        store.parent.mkdir(parents=True, exist_ok=True)
        with store.with_name(store.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not store.exists():
                aside = store.with_name(store.name + ".tmp")
                aside.unlink(missing_ok=True)
                MlflowClient(f"sqlite:///{aside}").search_experiments(max_results=1)
                aside.replace(store)
    return MlflowClient(uri)


def _experiment_id(client: Any, config: TrackingConfig) -> str:
    from mlflow.exceptions import MlflowException

    if (found := client.get_experiment_by_name(config.experiment)) is not None:
        return found.experiment_id
    location = None if config.on_server else Path(config.artifacts).resolve().as_uri()
    try:
        return client.create_experiment(config.experiment, artifact_location=location)
    except MlflowException as error:
        if error.error_code == "RESOURCE_ALREADY_EXISTS":  # another run was first
            return client.get_experiment_by_name(config.experiment).experiment_id
        raise


def _batches(entries: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [entries[start : start + size] for start in range(0, len(entries), size)]


def _name(name: str) -> str:
    """`name` with what MLflow forbids in names replaced."""
    return re.sub(r"[^/\w.\- ]", "_", name)[:_NAME_LENGTH]


def _shortened(value: object, length: int) -> str:
    text = without_password(value if isinstance(value, str) else json.dumps(value, default=str))
    note = " ... (cut to MLflow's limit; the run folder has it whole)"
    return text if len(text) <= length else text[: length - len(note)] + note
