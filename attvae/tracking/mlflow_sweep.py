"""A sweep in MLflow: a run of its own, under which its trials' runs are nested."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attvae.tracking.config import TrackingConfig, without_password
from attvae.tracking.mlflow_tracker import MlflowRun, _connect
from attvae.tracking.protocol import Status

PARENT_TAG = "mlflow.parentRunId"


class MlflowSweep:
    """The parent run. A store that takes no data is warned about, and ends no sweep."""

    def __init__(self, config: TrackingConfig, folder: Path, name: str, params: Mapping[str, object]) -> None:
        """
        Args:
            folder: of the sweep; its mlflow.json names the run to go on with.
            params: what is searched, and how.
        """
        self._config = config.with_environment().model_copy(update={"run_name": name})
        self._folder = folder
        self._run: MlflowRun | None = None
        self._quietly(lambda: self._begin(params))

    @property
    def tags(self) -> dict[str, str]:
        """What makes a run a trial of this sweep."""
        return {PARENT_TAG: self._run.run_id} if self._run else {}

    def end(self, status: Status, reason: str, ranked: Sequence[Path]) -> None:
        """
        Args:
            ranked: the run folders of the trials, the best first.
        """
        self._quietly(lambda: self._end(status, reason, ranked))

    def _begin(self, params: Mapping[str, object]) -> None:
        run = MlflowRun(self._config, self._folder)
        run.describe(params, {})
        self._run = run

    def _end(self, status: Status, reason: str, ranked: Sequence[Path]) -> None:
        if self._run is None:
            return
        client = _connect(self._config.uri)
        for rank, folder in enumerate(ranked, start=1):
            if (note := folder / "mlflow.json").is_file():
                client.set_tag(json.loads(note.read_text())["run_id"], "sweep.rank", str(rank))
        for name in ("trials.json", "best.yaml", "index.html"):
            if (file := self._folder / name).is_file():
                self._run.log_artifact(file)
        self._run.end(status, reason)

    def _quietly(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            logging.getLogger(__name__).warning(
                without_password(
                    f"MLflow at {self._config.uri} takes no data of the sweep ({type(error).__name__}: {error}). It "
                    "goes on; make the store reachable and writable, or set overrides.tracking.mlflow=false."
                )
            )
