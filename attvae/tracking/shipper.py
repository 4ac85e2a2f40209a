"""MLflow, kept up to date with a run folder: all at once, or by a thread beside the training."""

import logging
import random
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from attvae.tracking import recorded
from attvae.tracking.config import TrackingConfig
from attvae.tracking.jsonl import read_from
from attvae.tracking.mlflow_model import log_model
from attvae.tracking.mlflow_store import SentByAnotherError, StoredRun, connect, time_for_an_upload
from attvae.tracking.protocol import Status
from attvae.tracking.recorded import Ending
from attvae.tracking.secrets import without_secrets

SEND_EVERY_S = 1.0
"""Figures that come closer together go in one batch."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Between tries while the store is away: doubled each time, at random between the half and the whole."""

QUIET_S: Mapping[Status, float] = {"FINISHED": 15.0, "FAILED": 15.0, "KILLED": 5.0}
"""How long a run that ends waits for MLflow while nothing arrives there. KILLED: a grace period is running out."""

LONGEST_S: Mapping[Status, float] = {"FINISHED": 600.0, "FAILED": 600.0, "KILLED": 5.0}
"""How long it waits while something does arrive."""

STARTS_S = 60.0
"""How long it may take to import mlflow and to make a SQLite store that is missing."""

_ROWS = 100  # of the journal at a time


class Sender:
    """Sends what a run folder holds and its run in MLflow lacks. Raises what MLflow raises, and then starts over."""

    def __init__(self, config: TrackingConfig, run_dir: Path, params: Mapping[str, object]) -> None:
        """
        Args:
            run_dir: the run folder; `recorded` says what is read in it.
            params: its configuration, flattened to dotted keys.
        """
        self.config = config.with_environment()
        self._run_dir = run_dir
        self._params = {key: value for key, value in params.items() if not key.startswith("tracking.tags.")}
        self._client: Any = None
        self._run: StoredRun | None = None
        self._remarked: set[str] = set()
        self._sent_files: dict[tuple[str, Path], tuple[int, int]] = {}  # of which run: modified in ns, bytes
        self.figures = 0
        """How many were sent."""
        self.pictures = 0
        """How many were sent."""
        self.alive_at = time.monotonic()
        """When something arrived, of time.monotonic(); in the future while something large is on its way."""

    def connect(self) -> None:
        """Imports mlflow, and makes a SQLite store that is missing; `send` does it otherwise."""
        if self._client is None:
            with self._may_take(STARTS_S):
                self._client = connect(self.config.uri)

    def send(self, ending: Ending | None) -> None:
        """
        Args:
            ending: how the run stands; None leaves the status as it is.
        """
        try:
            self._send(ending)
        except BaseException:
            self.close()
            raise

    def read_anew(self) -> None:
        """The journal has been written anew."""
        self._offset = 0

    def close(self) -> None:
        """Lets another process send."""
        if self._run is not None:
            self._run.close()
        self._run = None

    @property
    def shown_uri(self) -> str:
        return without_secrets(self.config.uri)

    def where(self) -> str:
        """The address of the run, once something was sent."""
        assert self._run is not None
        uri = self.shown_uri
        if self.config.on_server:
            return f"{uri.rstrip('/')}/#/experiments/{self._run.experiment_id}/runs/{self._run.run_id}"
        return f"run {self._run.run_id} in {uri}"

    def _send(self, ending: Ending | None) -> None:
        run_dir = self._run_dir
        if self._run is None:
            self.connect()
            self._run = StoredRun(self._client, self.config, run_dir, self._remark)
            self._arrived()
            self._offset = 0
            self._run.describe(self._params, {**recorded.tags(run_dir), **self.config.tags})
            self._run.log_dataset(recorded.environment(run_dir).get("dataset", {}))
        run = self._run
        if (journal := run_dir / "metrics.jsonl").exists():
            rows, offset = read_from(journal, self._offset)
            for start in range(0, len(rows), _ROWS):
                self.figures += run.log_rows(rows[start : start + _ROWS])
                self._arrived()
            self._offset = offset
        for picture in recorded.pictures(run_dir):
            self.pictures += run.log_picture(picture)
            self._arrived()
        for file in recorded.artifacts(run_dir):
            version = (file.stat().st_mtime_ns, file.stat().st_size)
            if self._sent_files.get((run.run_id, file)) != version:
                run.log_file(file)
                self._sent_files[run.run_id, file] = version
                self._arrived()
        if ending is None:
            return
        run.set_status(*ending)
        self._arrived()
        if ending.status == "FINISHED" and (run_dir / "model").is_dir():
            with self._may_take(LONGEST_S["FINISHED"]), time_for_an_upload():
                log_model(run.run_id, self.config.uri, run_dir, self.config.register_as)

    def _arrived(self) -> None:
        self.alive_at = time.monotonic()

    @contextmanager
    def _may_take(self, seconds: float) -> Iterator[None]:
        """Something that shows no sign of life before its end."""
        before, self.alive_at = self.alive_at, time.monotonic() + seconds
        try:
            yield
        except BaseException:
            self.alive_at = before
            raise
        self._arrived()

    def _remark(self, kind: str, text: str) -> None:
        if kind not in self._remarked:
            self._remarked.add(kind)
            logging.getLogger(__name__).warning(without_secrets(text))


class Shipper:
    """A thread that sends what comes; a tracker whose calls only wake it.

    The training never sees an error and never waits: while the store is away one warning says so, and all that the
    run folder holds by then is sent when it is back.
    """

    def __init__(self, config: TrackingConfig, run_dir: Path, params: Mapping[str, object]) -> None:
        """Arguments as those of `Sender`.

        mlflow is imported at once, while the rest is made ready: a training would be slower for two seconds. Nothing is
        sent before `follow`.
        """
        self._run_dir = run_dir
        self._sender = Sender(config, run_dir, params)
        self._woken = threading.Event()
        self._written_anew = threading.Event()
        self._finishing = threading.Event()
        self._finished = threading.Event()
        self._let_go = False
        self._ending = Ending("RUNNING")
        self._failure = ""
        self._warned = False
        # A daemon: an answer that does not come keeps no process alive.
        self._thread = threading.Thread(target=self._work, name="shipper", daemon=True)
        self._thread.start()

    def follow(self) -> None:
        """The journal is there, or has been written anew: from its start."""
        self._written_anew.set()
        self._woken.set()

    def metrics(self, samples_seen: int, values: Mapping[str, float]) -> None:
        self._woken.set()

    def image(self, samples_seen: int, name: str, path: Path) -> None:
        self._woken.set()

    def close(self, status: Status, reason: str = "") -> None:
        """Nothing yet: a run goes on after a roll-back. `finish` is the end."""

    def finish(self, status: Status, reason: str = "") -> None:
        """Nothing more comes: waits until the rest has arrived, or as long as QUIET_S and LONGEST_S say."""
        self._ending = Ending(status, reason)
        self._finishing.set()
        self._woken.set()
        asked = time.monotonic()
        while not self._finished.wait(0.05):
            now = time.monotonic()
            if now - max(asked, self._sender.alive_at) > QUIET_S[status] or now - asked > LONGEST_S[status]:
                self._let_go = True
                if not self._warned:
                    self._warn(self._failure or "no answer yet")
                print(f"attvae: `attvae sync {self._run_dir}` sends the rest to MLflow", file=sys.stderr, flush=True)
                return

    def _work(self) -> None:
        failures = 0
        with suppress(Exception):  # told when it is tried again
            self._sender.connect()
        while not self._let_go:
            self._woken.wait()
            self._woken.clear()
            if self._written_anew.is_set():
                self._written_anew.clear()
                self._sender.read_anew()
            finishing = self._finishing.is_set()
            try:
                self._sender.send(self._ending)
            except SentByAnotherError as error:
                self._failure = str(error)
                self._pause(FIRST_PAUSE_S)
                self._woken.set()
            except Exception as error:
                failures += 1
                self._failure = cause(error)
                if failures == 2 and not self._let_go:  # one alone is often gone at the next try
                    self._warn(self._failure)
                self._pause(min(FIRST_PAUSE_S * 2 ** (failures - 1), LONGEST_PAUSE_S) * random.uniform(0.5, 1.0))
                self._woken.set()
            else:
                if self._warned and not finishing:
                    print(f"attvae: MLflow at {self._sender.shown_uri} takes data again", file=sys.stderr, flush=True)
                failures, self._warned = 0, False
                if finishing:
                    self._sender.close()
                    self._finished.set()
                    return
                self._finishing.wait(SEND_EVERY_S)

    def _pause(self, seconds: float) -> None:
        """Shorter when the run ends, which is worth a try at once."""
        if self._finishing.is_set():
            time.sleep(min(seconds, FIRST_PAUSE_S))
        else:
            self._finishing.wait(seconds)

    def _warn(self, why: str) -> None:
        self._warned = True
        logging.getLogger(__name__).warning(
            f"MLflow at {self._sender.shown_uri} takes no data ({why}). "
            f"The run goes on, {self._run_dir / 'metrics.jsonl'} holds every figure, and MLflow is tried again; "
            f"afterwards, `attvae sync {self._run_dir}` sends what is missing. "
            f"{remedy(why)}, or set tracking.mlflow=false."
        )


def cause(error: BaseException) -> str:
    """What happened, in one line; MLflow, SQLAlchemy and urllib3 wrap it in what they were doing.

    A plain ValueError is our own, and says more than what it was made of.
    """
    while error.__cause__ is not None and type(error) is not ValueError:
        error = error.__cause__
    text = " ".join(str(error).split())
    text = text.rpartition("(Caused by ")[2].rstrip(")") if "(Caused by " in text else f"{type(error).__name__}: {text}"
    return without_secrets(text[:10_000])[:300]  # in this order: half a secret is not known as one


_REFUSED = ("401", "403", "unauthenticated", "unauthorized", "permission_denied", "forbidden")
_UNWRITABLE = ("readonly", "read-only", "permission denied")


def remedy(why: str) -> str:
    """What to do about a `cause`."""
    told = why.lower()
    if any(word in told for word in _REFUSED):
        return (
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of one who may write"
        )
    if any(word in told for word in _UNWRITABLE):
        return "Make the store writable (tracking.uri or MLFLOW_TRACKING_URI, tracking.artifacts)"
    if "was deleted there" in told or "mlflow_run_id" in told:
        return "Do one of these"
    return "Make the store reachable and writable (tracking.uri or MLFLOW_TRACKING_URI, tracking.experiment)"
