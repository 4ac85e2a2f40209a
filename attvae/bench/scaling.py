"""Two ranks on two cores against one rank on one core, with the same images per rank.

Each rank has a core of its own, and one thread. All ranks are there from the start, and asleep while others are
measured; the measurements go round, so that a busy machine strikes all alike:

* `one`: a rank alone, on the one core and on the other; their mean is what the others are compared with;
* `two`: two ranks of one run, one on each core;
* `ceiling`: two runs of one rank at the same time, one on each core. They share nothing but the machine.
"""

import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import mean, median
from typing import Any, NamedTuple

import torch
from rich.console import Console

from attvae.bench.data import machine
from attvae.bench.spread import spread
from attvae.config import RunConfig
from attvae.data.loader import open_manifest
from attvae.engine import rendezvous
from attvae.engine.batch import BatchPlan
from attvae.engine.throughput import TRAINING_PHASES
from attvae.rehearsal import Rehearsal
from attvae.spec import DataSpec

WARMUP_STEPS = 5
SILENT_S = 300.0
"""A rank that does not answer for so long has hung."""


class Measured(NamedTuple):
    """One rank's part of a measurement."""

    seconds: float
    cpu_s: float
    """That the core worked for this rank; the rest of the time it waited, for the other rank or for the core."""
    phases: dict[str, float]
    """Seconds in each phase."""


def measure_scaling(cfg: RunConfig, batch: int, steps: int, repeats: int) -> dict[str, Any]:
    """Measures on the CPU; says on stderr how far it is.

    Args:
        cfg: of the model, the engine and the training; the images are random.
        batch: images per rank and update.
        steps: updates of each measurement.

    Returns:
        Machine, settings, and what was measured: images/s, and how many times those of one rank.

    Raises:
        ValueError: there is one core only, or what cannot be measured is asked for.
        RuntimeError: a rank failed.
    """
    if min(batch, steps, repeats) < 1:
        raise ValueError(f"found batch={batch}, steps={steps}, repeats={repeats}: expected at least 1 of each")
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise ValueError("two ranks on two cores cannot be measured where there is one core")
    spec = cfg.data.spec or open_manifest(cfg.data).spec
    console = Console(stderr=True)
    rates: dict[str, list[float]] = defaultdict(list)
    ranks: dict[str, list[Measured]] = defaultdict(list)
    with ExitStack() as running:
        a, b, pair = (running.enter_context(_run(cfg, spec, batch, on)) for on in (cores[:1], cores[1:], cores))
        together = {"one": [a, b], "two": [pair], "ceiling": [[*a, *b]]}
        for run in (a, b, pair):
            _train(run, WARMUP_STEPS)
        for repeat in range(1, repeats + 1):
            for name, groups in together.items():
                answers = [_train(group, steps) for group in groups]
                rates[name].append(mean(sum(batch * steps / one.seconds for one in group) for group in answers))
                ranks[name] += [one for group in answers for one in group]
            shown = ", ".join(f"{name} {found[-1]:,.1f}" for name, found in rates.items())
            console.print(f"repeat {repeat} of {repeats}, images/s: {shown}")
    return {
        "machine": machine(),
        "engine": cfg.engine.model_dump(mode="json"),
        "batch_per_rank": batch,
        "steps": steps,
        "repeats": repeats,
        **summary(rates),
        "ms_per_step_and_rank": {name: _times(found, steps) for name, found in ranks.items()},
    }


def summary(rates: dict[str, list[float]]) -> dict[str, Any]:
    """The images/s of all repeats, and `speedup` and `ceiling`: how many times those of `one`, repeat by repeat."""
    figures: dict[str, Any] = {"images_per_s": {name: spread(found) for name, found in rates.items()}}
    for name, key in (("two", "speedup"), ("ceiling", "ceiling")):
        figures[key] = spread([rate / one for rate, one in zip(rates[name], rates["one"], strict=True)])
    return figures


def _times(ranks: Sequence[Measured], steps: int) -> dict[str, float]:
    """Medians, in ms."""
    times = {"wall": median(one.seconds for one in ranks), "cpu": median(one.cpu_s for one in ranks)}
    times |= {phase: median(one.phases.get(phase, 0.0) for one in ranks) for phase in TRAINING_PHASES}
    return {name: 1000 * seconds / steps for name, seconds in times.items()}


@contextmanager
def _run(cfg: RunConfig, spec: DataSpec, batch: int, cores: Sequence[int]) -> Iterator[list[Connection]]:
    """A run with one rank on each of the cores, ready to train."""
    context = get_context("spawn")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    processes, connections = [], []
    try:
        for rank, core in enumerate(cores):
            ours, theirs = context.Pipe()
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(len(cores)),
                "LOCAL_WORLD_SIZE": str(len(cores)),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
            }
            process = context.Process(target=_rank, args=(theirs, core, environment, cfg, spec, batch), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            connections.append(ours)
        yield connections
    finally:
        for connection in connections:
            connection.close()  # which ends the rank
        for process in processes:
            process.join(10)
            process.kill()


def _train(ranks: Sequence[Connection], steps: int) -> list[Measured]:
    """What each rank measured over so many steps, all at the same time."""
    for rank in ranks:
        rank.send(steps)
    answers = []
    for rank in ranks:
        if not rank.poll(SILENT_S):
            raise RuntimeError(f"a rank did not answer within {SILENT_S:.0f} s")
        try:
            answers.append(rank.recv())
        except EOFError:
            raise RuntimeError("a rank failed: its message is above") from None
    return answers


def _rank(
    connection: Connection, core: int, environment: dict[str, str], cfg: RunConfig, spec: DataSpec, batch: int
) -> None:
    """A rank, in its own process: trains as many steps as it is told, until there is nobody to tell it."""
    os.sched_setaffinity(0, {core})
    os.environ.update(environment)
    torch.set_num_threads(1)
    world = rendezvous.join(device="cpu")
    try:
        run = Rehearsal(cfg, spec, world, BatchPlan(batch, accumulation=1))
        while True:
            steps = connection.recv()
            world.phases.take()
            start, cpu = time.perf_counter(), time.process_time()
            for _ in range(steps):
                run.train_step()
            seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu
            connection.send(Measured(seconds, cpu_s, world.phases.take()))
    except EOFError:
        pass
    finally:
        rendezvous.leave()
