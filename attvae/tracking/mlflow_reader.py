"""A run that MLflow holds, read back."""

import json
import math
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from attvae.tracking.jsonl import Row
from attvae.tracking.mlflow_store import connect
from attvae.tracking.run import Run
from attvae.tracking.secrets import without_secrets
from attvae.tracking.shipper import cause

_PICTURE = re.compile(r"images/(.+)\+step\+(\d+)\+timestamp\+.+\.png")
_CONFIG, _SUMMARY = "config.yaml", "summary.json"
_REMEDY = "name the store with --tracking-uri or MLFLOW_TRACKING_URI"
_INFINITE = 1.79e308
"""Databases hold no infinity: MLflow stores the largest number in its place."""


def read(run_id: str, uri: str) -> Run:
    """
    Raises:
        ValueError: the store has no such run, or does not exist.
        ConnectionError: the store gives no answer; later too, when a picture is read.
    """
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise ValueError(f"there is no MLflow store {without_secrets(uri)} to look for the run {run_id} in: {_REMEDY}")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with _explained(run_id, uri):
        client = connect(uri)
        run = client.get_run(run_id)
        files = sorted(file.path for folder in ("", "images") for file in client.list_artifacts(run_id, folder))
        pictures = {path: match for path in files if (match := _PICTURE.fullmatch(path))}
        return Run(
            name=run.info.run_name,
            source=run_id,
            status=run.info.status,
            reason=run.data.tags.get("reason", ""),
            # The file has whole values, and those that the run was continued with: MLflow never changes a param.
            config=yaml.safe_load(_fetch(client, run_id, _CONFIG)) if _CONFIG in files else run.data.params,
            tags=run.data.tags,
            rows=_rows(client, run_id, list(run.data.metrics)),
            pictures={
                (match[1], int(match[2])): partial(_picture, client, run_id, uri, path)
                for path, match in pictures.items()
            },
            summary=json.loads(_fetch(client, run_id, _SUMMARY)) if _SUMMARY in files else {},
        )


@contextmanager
def _explained(run_id: str, uri: str) -> Iterator[None]:
    """What MLflow, its database or the network raise, as an error that says what to do."""
    from mlflow.exceptions import MlflowException

    where = without_secrets(uri)
    try:
        yield
    except Exception as error:
        if isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise ValueError(
                f"MLflow at {where} has no run {run_id}: look for its id in the UI, or {_REMEDY}"
            ) from error
        raise ConnectionError(
            f"the run {run_id} cannot be read from MLflow at {where} ({cause(error)}): make it reachable, or {_REMEDY}"
        ) from error


def _picture(client: Any, run_id: str, uri: str, path: str) -> bytes:
    with _explained(run_id, uri):
        return _fetch(client, run_id, path)


def _fetch(client: Any, run_id: str, path: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return Path(client.download_artifacts(run_id, path, folder)).read_bytes()


def _rows(client: Any, run_id: str, names: list[str]) -> list[Row]:
    """The figures put together as the journal's rows, which share step and time."""
    rows: defaultdict[tuple[int, int], Row] = defaultdict(dict)
    for name in names:
        for metric in client.get_metric_history(run_id, name):
            infinite = abs(metric.value) > _INFINITE
            value = math.copysign(math.inf, metric.value) if infinite else metric.value
            rows[metric.step, metric.timestamp].setdefault(name, value)
    return [{"samples_seen": step, "time": ms / 1000, **rows[step, ms]} for step, ms in sorted(rows)]
