"""Finds the runs that are named: run folders, or runs in MLflow."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from attvae.config import flatten
from attvae.read_run import read_run
from attvae.tracking import mlflow_reader
from attvae.tracking.config import TrackingConfig
from attvae.tracking.run import Run
from attvae.tracking.secrets import without_secrets

_RUN_ID = re.compile("[0-9a-f]{32}")


def read_runs(named: Sequence[str], tracking_uri: str | None) -> list[Run]:
    """The runs in the order named, their names told apart, their configurations as dotted keys and text.

    Args:
        named: run folders and MLflow run ids.
        tracking_uri: MLflow's store; None: MLFLOW_TRACKING_URI, or the one that runs use by default.

    Raises:
        ValueError: fewer than two runs, one twice, or one that is none.
        ConnectionError: MLflow gives no answer.
    """
    if len(named) < 2:
        raise ValueError(f"a comparison takes two runs or more, found {len(named)}: attvae compare RUN RUN ...")
    if twice := [name for name, times in Counter(str(Path(name)) for name in named).items() if times > 1]:
        raise ValueError(f"{twice[0]} is named twice: name each run once")
    uri = tracking_uri or TrackingConfig().with_environment().uri
    runs = [_read_run(name, uri) for name in named]
    names = Counter(run.name for run in runs)
    return [
        replace(run, name=run.name if names[run.name] == 1 else _longer_name(run), config=_as_text(run.config))
        for run in runs
    ]


def _read_run(name: str, uri: str) -> Run:
    if Path(name).exists():
        return read_run(Path(name))
    if _RUN_ID.fullmatch(name):
        return mlflow_reader.read(name, uri)
    raise ValueError(f"{name} is neither a folder that is there nor an MLflow run id (32 hexadecimal digits)")


def _longer_name(run: Run) -> str:
    return f"{run.name} {run.source[:8]}" if _RUN_ID.fullmatch(run.source) else run.source


def _as_text(tree: Mapping[str, Any]) -> dict[str, str]:
    """Dotted keys, and values as MLflow's params have them."""
    return {
        key: without_secrets(value if isinstance(value, str) else json.dumps(value))
        for key, value in flatten(tree).items()
    }
