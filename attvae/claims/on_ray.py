"""The cells of a study on a Ray cluster: each is a task that gets its processors, or its GPU."""

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attvae.claims.cell import AskedToStop, run_cell
from attvae.claims.study import Cell, Study
from attvae.engine.stop import StopRequestedError
from attvae.search.tune import ray_cluster

POLL_S = 1.0

_STOP = "stop"
"""A file in the study's folder, which the hosts share: it tells the cells to save and end."""


def run_cells(
    study: Study, cells: Sequence[Cell], out: Path, address: str, asked_to_stop: AskedToStop
) -> Iterator[dict[str, Any]]:
    """The rows of the cells as they end, as many at a time as the cluster has room for.

    Args:
        out: on a file system that all hosts share, as `data` and the working directory are.

    Raises:
        ValueError: no cluster at this address, or no host of it has room for a cell.
        StopRequestedError: it was asked to stop; all that ran is saved.
    """
    with ray_cluster(address):
        import ray

        needs = {"CPU": float(study.threads), **({"GPU": float(study.gpus)} if study.gpus else {})}
        hosts = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(host.get(name, 0) >= amount for name, amount in needs.items()) for host in hosts):
            wanted = " and ".join(f"{amount:g} {name}" for name, amount in needs.items())
            raise ValueError(f"no host of the Ray cluster at {address} has {wanted}, which a cell of the study takes")
        stop = out.absolute() / _STOP
        stop.unlink(missing_ok=True)
        task = ray.remote(_task).options(num_cpus=study.threads, num_gpus=study.gpus, max_retries=1)
        running = [task.remote(study, cell, out.absolute(), Path(os.getcwd()), stop) for cell in cells]
        while running:
            if (reason := asked_to_stop()) and not stop.exists():
                stop.write_text(reason)
            done, running = ray.wait(running, timeout=POLL_S)
            for row in ray.get(done):
                if row is not None:
                    yield row
        if stop.exists():
            reason = stop.read_text()
            stop.unlink()
            raise StopRequestedError(reason)


def _task(study: Study, cell: Cell, out: Path, cwd: Path, stop: Path) -> dict[str, Any] | None:
    """On some host of the cluster. None: it was asked to stop."""
    seen = (0.0, False)

    def asked_to_stop() -> str | None:
        nonlocal seen
        if time.monotonic() - seen[0] > POLL_S:  # a shared file system is not asked more often
            seen = (time.monotonic(), stop.exists())
        return "the study's end" if seen[1] else None

    if asked_to_stop():
        return None
    try:
        return run_cell(study, cell, out, cwd, asked_to_stop)
    except StopRequestedError:
        return None
