"""A study, from the command: what is not done yet is run, and the results are written."""

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch

from attvae.claims.cell import AskedToStop, Where, row_of, run_cell
from attvae.claims.study import Cell, Study, check
from attvae.data.loader import open_manifest
from attvae.engine.stop import StopRequest, StopRequestedError
from attvae.model.vae import DeepVAE
from attvae.owned_folder import owned
from attvae.pages.figures import duration
from attvae.run_folder import write_json
from attvae.search.tune import ray_cluster
from attvae.tracking.config import mlflow_variables


class Outcome(NamedTuple):
    """What there is of a study, also of one that was interrupted.

    Attributes:
        results: as results.json holds them.
        failed: cells among those that were to be run.
        interrupted: why it ended before its end.
    """

    results: dict[str, Any]
    failed: int
    interrupted: str | None


def plan(study: Study, *, full: bool, only: Sequence[str] = ()) -> list[Cell]:
    """The cells that are to be run, the sets that they belong to checked.

    Args:
        only: ids of cells; none: all that are asked for.

    Raises:
        ValueError: a cell is no valid run, its data are missing, the models of a set are not of one size, or there is
            no such cell.
    """
    cells = list(study.cells())
    if unknown := [each for each in only if each not in {cell.id for cell in cells}]:
        raise ValueError(f"--cell {unknown[0]}: the study has no such cell; one of them is {cells[0].id}")
    chosen = [cell for cell in cells if (cell.id in only if only else full or not study.sets[cell.set].full)]
    sets = {cell.set for cell in chosen}
    check(study, {cell: _parameters(study, cell) for cell in cells if cell.set in sets and cell.seed == study.seeds[0]})
    return chosen


def run_study(study: Study, cells: Sequence[Cell], out: Path, address: str | None, command: str, full: bool) -> Outcome:
    """Runs what is not done yet and writes `out`/results.json. Cells that have failed before are tried again.

    Args:
        cells: those to run, of `plan`; the results have what there is of all.
        address: of a Ray cluster, on which the cells are run; None: on this machine, study.parallel at a time.
        command: that began this, for the results.

    Raises:
        ValueError: the folder belongs to another study or to another process, or there is no such cluster.
        OSError: it cannot be written.
    """
    where = Where(out, Path.cwd(), mlflow_variables())
    with owned(out, "study"), ray_cluster(address) if address else nullcontext():
        to_do = [cell for cell in cells if row_of(study, cell, where)["status"] != "done"]
        print(f"{len(cells) - len(to_do)} of {len(cells)} cells are done, {len(to_do)} to go: {out}", flush=True)
        stop, interrupted = StopRequest(), None
        with stop.listening():
            stop.work_begins()
            if address:
                from attvae.claims.on_ray import run_cells  # Ray takes seconds to import
            else:
                run_cells = _run_here
            try:
                _tell(run_cells(study, to_do, where, lambda: stop.reason), len(to_do))
            except StopRequestedError as request:
                interrupted = str(request)
        rows = {cell: row_of(study, cell, where) for cell in study.cells()}
        results = {
            "study": study.name,
            "about": study.about,
            "chosen_on": study.chosen_on,
            "limits": study.limits,
            "command": command,
            "full": full,
            "variants": list(study.variants),
            "sets": {name: {"about": each.about, "full": each.full} for name, each in study.sets.items()},
            "cells": list(rows.values()),
        }
        write_json(out / "results.json", results)
    return Outcome(results, sum(rows[cell]["status"] == "failed" for cell in cells), interrupted)


def _parameters(study: Study, cell: Cell) -> int:
    cfg = study.config_of(cell)
    with torch.device("meta"):
        model = DeepVAE(cfg.model, open_manifest(cfg.data).spec)
    return sum(p.numel() for p in model.parameters())


def _run_here(
    study: Study, cells: Iterable[Cell], where: Where, asked_to_stop: AskedToStop
) -> Iterator[dict[str, Any]]:
    """The rows of the cells as they end.

    Raises:
        StopRequestedError: it was asked to stop; all that ran is saved.
    """
    broken = threading.Event()

    def reason() -> str | None:
        return asked_to_stop() or ("another cell's end" if broken.is_set() else None)

    with ThreadPoolExecutor(study.parallel) as pool:
        try:
            for ended in as_completed([pool.submit(run_cell, study, cell, where, reason) for cell in cells]):
                yield ended.result()
        finally:
            broken.set()  # after an error the cells beside it save and end, and no other begins


def _tell(rows: Iterable[dict[str, Any]], total: int) -> None:
    """One line for each cell as it ends."""
    begun = time.monotonic()
    for number, row in enumerate(rows, start=1):
        if row["status"] == "done":
            said = f"test NELBO {row['test']['nelbo_nats']['value']:.3f} nats"
        else:
            said = f"failed: {row['reason']}"
        left = (time.monotonic() - begun) / number * (total - number)
        print(f"{number}/{total}  {row['id']}  {said}  ETA {duration(left)}", flush=True)
