"""Sends to MLflow what a run folder holds and MLflow lacks: of runs without a network, or whose server was away."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from attvae.config import flatten
from attvae.run_folder import RunFolder
from attvae.tracking import recorded
from attvae.tracking.config import TrackingConfig
from attvae.tracking.jsonl import read
from attvae.tracking.mlflow_store import SentByAnotherError, missing_sqlite_store
from attvae.tracking.recorded import Ending
from attvae.tracking.shipper import Sender, cause, remedy


def check_run_id(runs: Sequence[Path]) -> None:
    """
    Raises:
        ValueError: MLFLOW_RUN_ID names one run for several folders.
    """
    if len(runs) > 1 and (run_id := os.environ.get("MLFLOW_RUN_ID")):
        raise ValueError(f"MLFLOW_RUN_ID={run_id} names one run, and here are {len(runs)} folders: unset it")


def sync(run: Path) -> str:
    """What was sent, and where it is now, in one line.

    The status is that of status.json. A run whose process died without a word is KILLED; one that is alive is left
    RUNNING.

    Raises:
        ValueError: the folder is no run, or damaged, or the SQLite store that holds the run is not here.
        ConnectionError: MLflow takes no data.
    """
    tree = _config_of(run)
    try:
        tracking = TrackingConfig.model_validate(tree.get("tracking", {}))
    except ValidationError as error:
        raise ValueError(f"{run / 'config.yaml'}: {error}") from error
    folder = RunFolder(run)
    _check(folder)
    sender = Sender(tracking, run, flatten(tree))
    if (run_id := folder.mlflow_run_id()) and (store := missing_sqlite_store(sender.config.uri)):
        raise ValueError(
            f"{run}: MLflow has it as run {run_id}, but there is no store {store.resolve()}: sync it from the folder "
            f"where it was started, set MLFLOW_TRACKING_URI to its store, or remove {folder.mlflow} for a new run there"
        )
    ending = _ending(folder)
    try:
        sender.send(ending)
        where = sender.where()
    except SentByAnotherError:
        return f"{run}: another process, such as the run's own, is sending it: nothing to do"
    except Exception as error:
        why = cause(error)
        uri = sender.shown_uri
        raise ConnectionError(f"{run}: MLflow at {uri} takes no data ({why}). {remedy(why)}.") from error
    finally:
        sender.close()
    sent = f"{sender.figures:,} figures and {sender.pictures:,} pictures sent"
    return f"{run}: {sent}, {ending.status if ending else 'RUNNING'}: {where}"


def _config_of(run: Path) -> dict[str, Any]:
    file = run / "config.yaml"
    try:
        tree = yaml.safe_load(file.read_text())
    except OSError as error:
        raise ValueError(f"{run} is no run folder: {file} cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{run} is no run folder: {file} is not valid YAML ({error})") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{run} is no run folder: {file} holds no configuration")
    return tree


def _check(folder: RunFolder) -> None:
    """
    Raises:
        ValueError: what the folder says of its run is damaged.
    """
    read(folder.journal)
    for file, look in ((folder.path / "environment.json", recorded.tags), (folder.status, recorded.ending)):
        try:
            look(folder.path)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{file} is damaged ({error}): mend or remove it") from error


def _ending(folder: RunFolder) -> Ending | None:
    """None of a run that is alive: it says itself how it stands."""
    if folder.is_in_use():
        return None
    found = recorded.ending(folder.path)
    if found.status != "RUNNING":
        return found
    last_sign = (folder.journal if folder.journal.exists() else folder.config).stat().st_mtime
    if folder.summary.is_file():
        return Ending("FINISHED", time=last_sign)
    return Ending("KILLED", "the process ended without a word", last_sign)
