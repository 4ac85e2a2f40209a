"""A sweep in MLflow: a run of its own, under which its trials' runs are nested."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attvae.tracking.config import TrackingConfig
from attvae.tracking.mlflow_store import StoredRun, connect
from attvae.tracking.protocol import Status
from attvae.tracking.secrets import without_secrets
from attvae.tracking.shipper import cause, remedy

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
        self._run: StoredRun | None = None
        self._quietly(lambda: self._begin(params))

    @property
    def tags(self) -> dict[str, str]:
        """What makes a run a trial of this sweep."""
        return {PARENT_TAG: self._run.run_id} if self._run else {}

    def end(self, status: Status, reason: str, ranked: Sequence[str | None]) -> None:
        """
        Args:
            ranked: the MLflow run ids of the trials, the best first; None of one that MLflow does not know.
        """
        self._quietly(lambda: self._end(status, reason, ranked))

    def _begin(self, params: Mapping[str, object]) -> None:
        self._client = connect(self._config.uri)
        run = StoredRun(self._client, self._config, self._folder, lambda _, text: self._warn(text))
        run.set_status("RUNNING")
        run.describe(params, {"mlflow.source.name": "attvae sweep", "mlflow.source.type": "LOCAL"})
        self._run = run

    def _end(self, status: Status, reason: str, ranked: Sequence[str | None]) -> None:
        if self._run is None:
            return
        for rank, run_id in enumerate(ranked, start=1):
            if run_id is not None:
                self._client.set_tag(run_id, "sweep.rank", str(rank))
        for name in ("search.yaml", "trials.json", "best.yaml", "index.html"):
            if (file := self._folder / name).is_file():
                self._run.log_file(file)
        self._run.set_status(status, reason)
        self._run.close()

    def _quietly(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            why = cause(error)
            self._warn(
                f"MLflow at {without_secrets(self._config.uri)} takes no data of the sweep ({why}). It goes on, "
                f"and its folder holds everything. {remedy(why)}, or set overrides.tracking.mlflow=false."
            )

    def _warn(self, text: str) -> None:
        logging.getLogger(__name__).warning(without_secrets(text))
