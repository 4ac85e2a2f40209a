"""What a run folder says of its run, as MLflow gets it: tags, pictures, files, status."""

import json
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from attvae.tracking.protocol import Status

ARTIFACTS = (
    "config.yaml",
    "command.txt",
    "environment.json",
    "git.diff",
    "deepspeed.json",
    "summary.json",
    "report.html",
)
"""Files of a run folder that go to MLflow, those that are there."""


class Picture(NamedTuple):
    """images/<name>-<samples_seen>.png"""

    name: str
    samples_seen: int
    path: Path


class Ending(NamedTuple):
    """What status.json says."""

    status: Literal["RUNNING"] | Status
    reason: str = ""
    time: float | None = None
    """Unix time in seconds."""


def environment(run: Path) -> dict[str, Any]:
    """environment.json; empty where there is none."""
    path = run / "environment.json"
    return read_object(path) if path.is_file() else {}


def read_object(path: Path) -> dict[str, Any]:
    """
    Raises:
        ValueError: the file holds something else than a JSON object.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return found


def tags(run: Path) -> dict[str, object]:
    """What tells runs apart beside their configuration."""
    about = environment(run)
    git, packages, dataset = about.get("git", {}), about.get("packages", {}), about.get("dataset", {})
    found = {
        **{name: about.get(name) for name in ("ranks", "engine", "zero_stage", "parameters", "resumed_from")},
        "hosts": ", ".join(about.get("hosts", [])),
        "dataset": " ".join(dataset[key] for key in ("name", "version") if key in dataset),
        "dataset_fingerprint": dataset.get("fingerprint"),
        "mlflow.source.name": "attvae train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": git.get("commit"),
        **{f"git.{key}": value for key, value in git.items()},
        **{f"version.{name}": version for name, version in packages.items()},
    }
    return {name: value for name, value in found.items() if value not in (None, "")}


def pictures(run: Path) -> list[Picture]:
    """In the order of samples seen."""
    found = ((re.fullmatch(r"([^/+]+)-(\d{12})\.png", path.name), path) for path in (run / "images").glob("*.png"))
    return sorted(
        (Picture(match[1], int(match[2]), path) for match, path in found if match), key=lambda picture: picture[1::-1]
    )


def artifacts(run: Path) -> list[Path]:
    return [path for name in ARTIFACTS if (path := run / name).is_file()]


def ending(run: Path) -> Ending:
    """How the run stands; RUNNING where status.json is not there yet."""
    path = run / "status.json"
    if not path.is_file():
        return Ending("RUNNING")
    found = read_object(path)
    if found.get("status") not in (known := ("RUNNING", *get_args(Status))):
        raise ValueError(f"{path.name} says status {found.get('status')!r}, not one of {', '.join(known)}")
    return Ending(found["status"], found.get("reason", ""), found.get("time"))
