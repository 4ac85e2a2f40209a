"""A run as its folder tells it."""

import math
from pathlib import Path

import yaml

from attvae.run_folder import RunFolder
from attvae.tracking import recorded
from attvae.tracking.jsonl import read
from attvae.tracking.run import Run


def read_run(path: Path) -> Run:
    """A run from its folder; it may still be going.

    Raises:
        ValueError: it is no run folder, or a file in it is damaged.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise ValueError(f"{path} is no run folder (no config.yaml): name a folder that `attvae train` has made")
    try:
        config = yaml.safe_load(folder.config.read_text())
        ending = recorded.ending(path)
        tags = recorded.tags(path)
        summary = recorded.read_object(folder.summary) if folder.summary.is_file() else {}
    except (yaml.YAMLError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{path}: a file of the run cannot be read ({error}): is it a run folder?") from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder.config} is no configuration of a run: expected a mapping of keys to values")
    rows = read(folder.journal)
    if untimed := [row for row in rows if not math.isfinite(row.get("time", math.nan))]:
        raise ValueError(f"{folder.journal}: the line of {untimed[0]['samples_seen']:,} samples seen has no time")
    status: str = ending.status
    if status == "RUNNING" and summary:  # it has no more to do; or it is from before status.json
        status = "FINISHED"
    elif status == "RUNNING" and not folder.is_in_use():  # its process died without a word
        status = "KILLED"
    return Run(
        name=path.resolve().name,
        source=str(path),
        status=status,
        reason=ending.reason,
        config=config,
        tags=tags,
        rows=rows,
        pictures={(each.name, each.samples_seen): each.path.read_bytes for each in recorded.pictures(path)},
        summary=summary,
    )
