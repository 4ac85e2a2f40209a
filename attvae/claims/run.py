"""A study, from the command: what is not done yet is run, and the results are written."""

import fcntl
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from attvae.claims import on_ray
from attvae.claims.cell import AskedToStop, described, run_cell
from attvae.claims.study import Cell, Study, check
from attvae.data.loader import open_manifest
from attvae.engine.stop import StopRequest, StopRequestedError
from attvae.model.vae import DeepVAE
from attvae.pages.figures import duration
from attvae.run_folder import write_json


class Results(NamedTuple):
    """What there is of a study, also of one that was interrupted.

    Attributes:
        found: as results.json holds it.
        interrupted: why it ended before its end.
    """

    found: dict[str, Any]
    interrupted: str | None

    @property
    def failed(self) -> int:
        return sum(row["status"] == "failed" for row in self.found["cells"])


def plan(study: Study, *, full: bool, only: str | None = None) -> list[Cell]:
    """The cells that are asked for, each of them checked.

    Args:
        only: the id of a single cell.

    Raises:
        ValueError: a cell is no valid run, its data are missing, the models of a set are not of one size, or there is
            no such cell.
    """
    cells = list(study.cells(full=full or only is not None))
    parameters = {}
    for cell in cells:
        if cell.seed != study.seeds[0]:
            continue
        cfg = study.config_of(cell)
        with torch.device("meta"):
            model = DeepVAE(cfg.model, open_manifest(cfg.data).spec)
        parameters[cell] = sum(p.numel() for p in model.parameters())
    check(study, list(parameters), parameters)
    if only is None:
        return cells
    chosen = [cell for cell in cells if cell.id == only]
    if not chosen:
        raise ValueError(f"--cell {only}: the study has no such cell; one of them is {cells[0].id}")
    return chosen


def run_study(study: Study, cells: Sequence[Cell], out: Path, address: str | None, command: str) -> Results:
    """Runs what is not done yet and writes `out`/results.json. Cells that have failed before are tried again.

    Args:
        cells: of `plan`.
        address: of a Ray cluster, on which the cells are run; None: on this machine, study.parallel at a time.
        command: that began this, for the results.

    Raises:
        ValueError: the folder belongs to another study or to another process, or there is no such cluster.
        OSError: it cannot be written.
    """
    with _owned(out):
        to_do = [cell for cell in cells if not _is_done(study, cell, out)]
        print(f"{len(cells) - len(to_do)} of {len(cells)} cells are done, {len(to_do)} to go: {out}", flush=True)
        stop = StopRequest()
        interrupted = None
        with stop.listening():
            stop.work_begins()
            try:
                if address is None:
                    _run_here(study, to_do, out, lambda: stop.reason)
                else:
                    _tell(on_ray.run_cells(study, to_do, out, address, lambda: stop.reason), len(to_do))
            except StopRequestedError as request:
                interrupted = str(request)
        found = {
            "study": study.name,
            "about": study.about,
            "chosen_on": study.chosen_on,
            "limits": study.limits,
            "command": command,
            "full": any(study.sets[cell.set].full for cell in cells),
            "variants": list(study.variants),
            "sets": {
                name: {"about": each.about, "full": each.full}
                for name, each in study.sets.items()
                if any(cell.set == name for cell in cells)
            },
            "cells": [_row(study, cell, out) for cell in cells],
        }
        write_json(out / "results.json", found)
    return Results(found, interrupted)


def _run_here(study: Study, cells: Sequence[Cell], out: Path, asked_to_stop: AskedToStop) -> None:
    """
    Raises:
        StopRequestedError: it was asked to stop; all that ran is saved.
    """
    waiting = iter(cells)

    def ended() -> Iterator[dict[str, Any]]:
        with ThreadPoolExecutor(study.parallel) as pool:
            running: set[Future[dict[str, Any]]] = set()
            while True:
                while len(running) < study.parallel and (cell := next(waiting, None)) is not None:
                    running.add(pool.submit(run_cell, study, cell, out, Path.cwd(), asked_to_stop))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for each in done:
                    yield each.result()

    _tell(ended(), len(cells))


def _tell(rows: Iterator[dict[str, Any]], total: int) -> None:
    """One line for each cell as it ends."""
    begun = time.monotonic()
    for number, row in enumerate(rows, start=1):
        if row["status"] == "done":
            said = f"test NELBO {row['test']['nelbo_nats']['value']:.3f} nats"
        else:
            said = f"failed: {row['reason']}"
        left = (time.monotonic() - begun) / number * (total - number)
        print(f"{number}/{total}  {row['id']}  {said}  ETA {duration(left)}", flush=True)


def _row(study: Study, cell: Cell, out: Path) -> dict[str, Any]:
    """What is known of a cell.

    Raises:
        ValueError: its folder holds a cell of another study.
    """
    expected, file = described(study, cell, out), out / cell.id / "cell.json"
    if not file.is_file():
        return expected
    try:
        row = json.loads(file.read_text())
        command = row["command"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}): remove it, and the cell is run again") from error
    if command != expected["command"]:
        raise ValueError(
            f"{file.parent} holds a cell of another study ({command}, not {expected['command']}): "
            "choose another folder with --out"
        )
    return row


def _is_done(study: Study, cell: Cell, out: Path) -> bool:
    return _row(study, cell, out)["status"] == "done"


@contextmanager
def _owned(out: Path) -> Iterator[None]:
    """One process a folder; the lock ends with it, however that ends.

    Raises:
        ValueError: another process owns it, or it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / "lock").open("a")
    except OSError as error:
        raise ValueError(
            f"cannot write the study's folder {out} ({error.strerror}): choose another with --out"
        ) from error
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(f"another process runs the study in {out}: wait for it, or end it") from None
        yield
