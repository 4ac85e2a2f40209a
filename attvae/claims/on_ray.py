"""The cells of a study on a Ray cluster: each is a task that gets its processors, or its GPU."""

import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from attvae.claims.cell import AskedToStop, Where, described, row_of, run_cell
from attvae.claims.study import Cell, Study
from attvae.engine.stop import StopRequestedError
from attvae.run_folder import write_json
from attvae.tracking.secrets import without_secrets

POLL_S = 1.0
_LOOK_AT_HOSTS_S = 60.0

_STOP = "stop-"
"""Begins the name of a file in the study's folder, which the hosts share: it tells the cells to save and end.

A study that goes on uses another name: a host may still remember the file that a shared file system has removed.
"""


def run_cells(
    study: Study, cells: Sequence[Cell], where: Where, asked_to_stop: AskedToStop
) -> Iterator[dict[str, Any]]:
    """The rows of the cells as they end, as many at a time as the cluster that this process has joined has room for.

    Args:
        where: on a file system that all hosts share, as the data are.

    Raises:
        ValueError: no host of the cluster has room for a cell.
        StopRequestedError: it was asked to stop; all that ran is saved.
    """
    needs = {"CPU": float(study.threads), **({"GPU": float(study.gpus)} if study.gpus else {})}
    no_room = (
        f"no host of the Ray cluster has {' and '.join(f'{amount:g} {name}' for name, amount in needs.items())}, "
        "which a cell of the study takes"
    )
    if not _has_room(needs):
        raise ValueError(no_room)
    stop = where.cwd / where.out / f"{_STOP}{uuid.uuid4().hex}"
    for left in stop.parent.glob(f"{_STOP}*"):
        left.unlink()
    task = ray.remote(_task).options(num_cpus=study.threads, num_gpus=study.gpus, max_retries=1)
    running = {task.remote(study, cell, where, stop): cell for cell in cells}
    looked = time.monotonic()
    while running:
        if time.monotonic() - looked > _LOOK_AT_HOSTS_S:
            looked = time.monotonic()
            if not _has_room(needs):
                print(f"attvae: {no_room}: waiting for one", file=sys.stderr, flush=True)
        if (reason := asked_to_stop()) and not stop.exists():
            stop.write_text(reason)
        done, _ = ray.wait([*running], timeout=POLL_S)
        for reference in done:
            cell = running.pop(reference)
            try:
                row = ray.get(reference)
            except RayTaskError as error:
                row = _failed(study, cell, where, f"{type(error.cause).__name__}: {error.cause}")
            except RayError as error:  # its host or its worker is gone, twice
                said = str(error).strip().partition("\n")[0]
                row = _failed(study, cell, where, f"Ray lost it: {said or type(error).__name__}")
            if row is not None:
                yield row
    if stop.exists():
        reason = stop.read_text()
        stop.unlink()
        raise StopRequestedError(reason)


def _has_room(needs: dict[str, float]) -> bool:
    hosts = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(all(host.get(name, 0) >= amount for name, amount in needs.items()) for host in hosts)


def _failed(study: Study, cell: Cell, where: Where, reason: str) -> dict[str, Any]:
    """Its row, which is left in its folder; a cell that had ended before it was lost is as it was."""
    row = row_of(study, cell, where)
    if row["status"] != "done":
        row = described(study, cell, where) | {"status": "failed", "reason": without_secrets(reason)}
        where.place(cell).mkdir(parents=True, exist_ok=True)
        write_json(where.place(cell) / "cell.json", row)
    return row


def _task(study: Study, cell: Cell, where: Where, stop: Path) -> dict[str, Any] | None:
    """On some host of the cluster. None: it was asked to stop."""
    seen = (0.0, False)

    def asked_to_stop() -> str | None:
        nonlocal seen
        if time.monotonic() - seen[0] > POLL_S:  # a shared file system is not asked more often
            seen = (time.monotonic(), stop.exists())
        return "the study's end" if seen[1] else None

    try:
        return run_cell(study, cell, where, asked_to_stop)
    except StopRequestedError:
        return None
