"""One cell of a study: an ordinary training run, and what is measured of it afterwards."""

import json
import platform
import shlex
import socket
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from attvae.claims.results import not_finite
from attvae.claims.study import Cell, Study
from attvae.config import differences, load
from attvae.engine.stop import StopRequestedError
from attvae.run_folder import RunFolder, write_json
from attvae.search.ranks import Part, Ranks, failure
from attvae.search.trial import finite
from attvae.tracking.jsonl import read
from attvae.tracking.secrets import without_secrets

POLL_S = 0.5

AskedToStop = Callable[[], str | None]
"""Why a cell is to save and end; None: it is not."""


class CellFailedError(RuntimeError):
    """Its run, or the measuring of it, has failed; the message says why."""


class Where(NamedTuple):
    """What all cells of a study have in common beside it, on whatever host they run.

    Attributes:
        out: the study's folder, as its user names it.
        cwd: where relative paths begin; like `out`, the same on every host.
        environment: of the runs: where MLflow is, and who may write.
    """

    out: Path
    cwd: Path
    environment: dict[str, str]

    def place(self, cell: Cell) -> Path:
        """The cell's folder."""
        return self.cwd / self.out / cell.id


def command(study: Study, cell: Cell, where: Where) -> list[str]:
    """What trains it, after `attvae`."""
    return ["train", str(study.base_of(cell)), *study.overrides_of(cell), "--out", str(where.out / cell.id / "run")]


def run_cell(study: Study, cell: Cell, where: Where, asked_to_stop: AskedToStop) -> dict[str, Any]:
    """Trains and measures one cell, and leaves its row in its folder's cell.json; an interrupted training goes on.

    Args:
        asked_to_stop: asked now and then.

    Returns:
        The row: `status` done, or failed with the `reason`.

    Raises:
        StopRequestedError: it was asked to stop, and has saved.
        OSError: its folder cannot be written.
    """
    place = where.place(cell)
    place.mkdir(parents=True, exist_ok=True)
    run, measured = RunFolder(place / "run"), place / "figures.json"
    row = described(study, cell, where) | {"started": datetime.now(UTC).isoformat(timespec="seconds")}
    training = ["-m", "attvae.cli", *command(study, cell, where)]
    measuring = ["-m", "attvae.claims.figures", str(run.path), str(study.importance_samples), str(measured)]
    try:
        for arguments, log in ((training, "train"), (measuring, "figures")):
            _run(study, arguments, place / log, where, asked_to_stop)
        figures = _read_figures(run, measured)
        if bad := next(not_finite(figures), None):
            raise CellFailedError(f"{bad[0]} is {bad[1]}")
        row |= {"status": "done", "reason": None, **figures}
    except CellFailedError as error:
        row |= {"status": "failed", "reason": without_secrets(str(error))}
    write_json(place / "cell.json", row)
    return row


def described(study: Study, cell: Cell, where: Where) -> dict[str, Any]:
    """The row of a cell that has not been run."""
    return {
        "id": cell.id,
        "set": cell.set,
        "depth": cell.layers,
        "variant": cell.variant,
        "seed": cell.seed,
        "samples": cell.samples,
        "importance_samples": study.importance_samples,
        "command": without_secrets(shlex.join(["attvae", *command(study, cell, where)])),
        "status": "missing",
        "reason": None,
    }


def row_of(study: Study, cell: Cell, where: Where) -> dict[str, Any]:
    """What its folder says of a cell.

    Raises:
        ValueError: that is damaged, or of another study.
    """
    file, run = where.place(cell) / "cell.json", RunFolder(where.place(cell) / "run")
    expected = described(study, cell, where)
    if not file.is_file():
        return expected
    try:
        row = json.loads(file.read_text())
        known = {"status": row["status"], "importance_samples": row["importance_samples"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged ({type(error).__name__}: {error}): remove it, and the cell is measured again"
        ) from error
    changed = differences(load(run.config), study.config_of(cell)) if run.config.is_file() else []
    if known["importance_samples"] != study.importance_samples:
        changed.append(f"importance_samples: {known['importance_samples']} there, {study.importance_samples} here")
    if changed:
        raise ValueError(
            f"{file.parent} holds a cell of another study ({'; '.join(changed)}): go back to that study, or choose "
            "another folder with --out"
        )
    return row


def _read_figures(run: RunFolder, measured: Path) -> dict[str, Any]:
    """
    Raises:
        CellFailedError: a file of the run is damaged.
    """
    try:
        return _figures(run, json.loads(measured.read_text()))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CellFailedError(f"a file of {run.path} cannot be read ({type(error).__name__}: {error})") from error


def _figures(run: RunFolder, measured: dict[str, Any]) -> dict[str, Any]:
    """What a finished run and the measuring of it say, as a part of its row."""
    summary = run.read_summary()
    environment = json.loads((run.path / "environment.json").read_text())
    rows = read(run.journal)
    test, errors = summary["test"], summary["test"]["standard_error"]
    without = summary.get("test_without_depth_attention")
    images_per_s = [value for _, value in finite(rows, "perf/images_per_s")]
    return {
        "parameters": summary["parameters"],
        "commit": environment["git"].get("commit"),
        "dirty": environment["git"].get("dirty"),
        "machine": {
            "processor": _processor(),
            "device": environment["device"],
            "cpus": environment["cpus"],
            "torch": version("torch"),
            "python": environment["python"],
        },
        "training": {"wall_s": summary["wall_s"], "s_per_image": 1 / statistics.median(images_per_s)},
        "sampling": measured["sampling"],
        "test": {
            **{
                name: {"value": test[name], "standard_error": errors[name]}
                for name in ("nelbo_nats", "nll_nats", "bits_per_dim")
            },
            "iw_nll_nats": measured["iw_nll_nats"],
            "kl_nats_per_layer": test["kl_nats_per_layer"],
            "images": test["images"],
        },
        "val": {"nelbo_nats": summary["val"]["nelbo_nats"]},
        "test_without_attention": {"nelbo_nats": without["nelbo_nats"]} if without else None,
        "validation_curve": [(row["samples_seen"], row["val/nelbo_nats"]) for row in rows if "val/nelbo_nats" in row],
        "attention": measured["attention"],
    }


def _processor() -> str:
    cpus = Path("/proc/cpuinfo")  # of Linux
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def _run(study: Study, arguments: list[str], log: Path, where: Where, asked_to_stop: AskedToStop) -> None:
    """
    Raises:
        CellFailedError: it has failed.
        StopRequestedError: it was asked to stop.
    """
    if reason := asked_to_stop():
        raise StopRequestedError(reason)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        master = ("127.0.0.1", free.getsockname()[1])
    environment = where.environment | {"OMP_NUM_THREADS": str(study.threads)}
    if not study.gpus:
        environment["DS_ACCELERATOR"] = "cpu"
    ranks = Ranks(arguments, Part(0, 1, 1, master), where.cwd, log, environment)
    try:
        while (codes := ranks.ended()) is None:
            if reason := asked_to_stop():
                raise StopRequestedError(reason)
            time.sleep(POLL_S)
    finally:
        ranks.stop()
    if why := failure(codes, ranks.said()):
        if reason := asked_to_stop():  # the signal came to all processes at once
            raise StopRequestedError(reason)
        raise CellFailedError(why.reason)
