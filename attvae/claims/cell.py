"""One cell of a study: an ordinary training run, and what is measured of it afterwards."""

import json
import math
import platform
import shlex
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attvae.claims.study import Cell, Study
from attvae.engine.stop import StopRequestedError
from attvae.run_folder import RunFolder, write_json
from attvae.search.ranks import Part, Ranks, failure
from attvae.search.trial import finite
from attvae.tracking.jsonl import read

POLL_S = 0.5

AskedToStop = Callable[[], str | None]
"""Why a cell is to save and end; None: it is not."""


class CellFailedError(RuntimeError):
    """Its run, or the measuring of it, has failed; the message says why."""


def command(study: Study, cell: Cell, run: Path) -> list[str]:
    """What trains it, after `attvae`."""
    return ["train", str(study.base_of(cell)), *study.overrides_of(cell), "--out", str(run)]


def run_cell(study: Study, cell: Cell, out: Path, cwd: Path, asked_to_stop: AskedToStop) -> dict[str, Any]:
    """Trains and measures one cell, and leaves its row in `out`/<id>/cell.json; an interrupted training goes on.

    Args:
        out: folder of the study; like `cwd`, where relative paths begin, the same on every host.
        asked_to_stop: asked now and then.

    Returns:
        The row: `status` done, or failed with the `reason`.

    Raises:
        StopRequestedError: it was asked to stop, and has saved.
        OSError: its folder cannot be written.
    """
    place = out / cell.id
    place.mkdir(parents=True, exist_ok=True)
    run, measured = RunFolder(place / "run"), place / "figures.json"
    row = described(study, cell, out) | {"started": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        training = ["-m", "attvae.cli", *command(study, cell, run.path)]
        _finish(_start(study, training, place / "train", cwd), asked_to_stop)
        measuring = ["-m", "attvae.claims.figures", str(run.path), str(study.importance_samples), str(measured)]
        _finish(_start(study, measuring, place / "figures", cwd), asked_to_stop)
        figures = _figures(run, json.loads(measured.read_text()))
        if bad := next(_not_finite(figures, ""), None):
            raise CellFailedError(f"{bad} is not finite")
        row |= {"status": "done", "reason": None, **figures}
    except CellFailedError as error:
        row |= {"status": "failed", "reason": str(error)}
    write_json(place / "cell.json", row)
    return row


def described(study: Study, cell: Cell, out: Path) -> dict[str, Any]:
    """The row of a cell that has not been run."""
    return {
        "id": cell.id,
        "set": cell.set,
        "depth": cell.layers,
        "variant": cell.variant,
        "seed": cell.seed,
        "samples": cell.samples,
        "command": shlex.join(["attvae", *command(study, cell, out / cell.id / "run")]),
        "status": "missing",
        "reason": None,
    }


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
        "validation_curve": finite(rows, "val/nelbo_nats"),
        "attention": measured["attention"],
    }


def _not_finite(node: Any, name: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _not_finite(value, f"{name}.{key}" if name else key)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _not_finite(value, name)
    elif isinstance(node, float) and not math.isfinite(node):
        yield name


def _processor() -> str:
    cpus = Path("/proc/cpuinfo")  # of Linux
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def _start(study: Study, arguments: list[str], log: Path, cwd: Path) -> Ranks:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        master = ("127.0.0.1", free.getsockname()[1])
    environment = {"OMP_NUM_THREADS": str(study.threads)}
    if not study.gpus:
        environment["DS_ACCELERATOR"] = "cpu"
    return Ranks(arguments, Part(0, 1, 1, master), cwd, log, environment)


def _finish(ranks: Ranks, asked_to_stop: AskedToStop) -> None:
    """
    Raises:
        CellFailedError: it has failed.
        StopRequestedError: it was asked to stop.
    """
    try:
        while (codes := ranks.ended()) is None:
            if reason := asked_to_stop():
                raise StopRequestedError(reason)
            time.sleep(POLL_S)
    finally:
        ranks.stop()
    if why := failure(codes, ranks.said()):
        raise CellFailedError(why.reason)
