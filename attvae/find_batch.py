"""The largest micro-batch that fits on this device, found by trying: each trial is a short run in a fresh process."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from attvae.config import RunConfig
from attvae.engine import rendezvous
from attvae.engine.batch import BatchPlan, divide
from attvae.engine.throughput import peak_memory_bytes
from attvae.rehearsal import Rehearsal
from attvae.spec import Config, DataSpec
from attvae.tracking.console import print_table

STEPS = 2
"""Updates of a trial: the second one has everything in memory, the optimizer's states too."""

SHARE = 0.9
"""Of the memory that is available on a CPU, what a trial may take; the rest stays for the data and for others."""

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc", "ALLOC_FAILED", "could not create a primitive")
"""What errors for want of memory say that have no class of their own: torch on a CPU, cuBLAS and cuDNN, oneDNN."""


class TrialFailedError(RuntimeError):
    """A trial ended for another reason than want of memory."""


class Trial(NamedTuple):
    micro_batch: int
    fits: bool
    peak_memory_gb: float | None = None
    images_per_s: float | None = None


class _Task(Config):
    """What a trial's process is told."""

    run: RunConfig
    spec: DataSpec
    micro_batch: int
    accumulation: int
    limit_bytes: int | None


def find_batch(
    cfg: RunConfig,
    spec: DataSpec,
    ranks: int,
    shown: Callable[[Trial], None],
    limit_bytes: int | None = None,
) -> list[Trial]:
    """Bisects the divisors of a rank's share of the global batch.

    Args:
        shown: is told of each trial.
        limit_bytes: of the memory of a trial on a CPU; by default SHARE of what is available.

    Returns:
        All trials, the smallest micro-batch first.

    Raises:
        ValueError: the ranks do not divide the global batch, or the configuration does not fit the device or the data.
        TrialFailedError: a trial ended for another reason than want of memory.
    """
    per_rank = divide(cfg.train.global_batch, ranks, None).micro_batch
    if rendezvous.device_of_this_rank(cfg.engine.device).type == "cpu":
        limit_bytes = limit_bytes or int(SHARE * available_bytes())
    candidates = [size for size in range(1, per_rank + 1) if per_rank % size == 0]
    trials: dict[int, Trial] = {}

    def fits(size: int) -> bool:
        # Gradients accumulate in their own memory from the second micro-batch on: two are as many as any.
        accumulation = min(per_rank // size, 2)
        task = _Task(run=cfg, spec=spec, micro_batch=size, accumulation=accumulation, limit_bytes=limit_bytes)
        trials[size] = _try(task)
        shown(trials[size])
        return trials[size].fits

    largest(candidates, fits)
    return [trials[size] for size in sorted(trials)]


def largest(candidates: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The last of the ascending candidates that fits, where all before it fit too; None if none does."""
    fitting, unfit = -1, len(candidates)
    while unfit - fitting > 1:
        middle = (fitting + unfit) // 2
        if fits(candidates[middle]):
            fitting = middle
        else:
            unfit = middle
    return candidates[fitting] if fitting >= 0 else None


def available_bytes() -> int:
    """Memory that this process can still take: of the machine, and of the control groups that hold it. Linux only."""
    free = [_field(Path("/proc/meminfo"), "MemAvailable:") * 1024]
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        match line.split(":", 2):
            case _, "memory", path:  # version 1
                root, limit, used, cache = "/sys/fs/cgroup/memory", "limit_in_bytes", "usage_in_bytes", "total_"
            case "0", "", path:  # version 2
                root, limit, used, cache = "/sys/fs/cgroup", "max", "current", ""
            case _:
                continue
        group = Path(root, path.lstrip("/"))
        for level in (group, *group.parents):
            file = level / f"memory.{limit}"
            if file.is_file() and (text := file.read_text().strip()) != "max":
                taken = int((level / f"memory.{used}").read_text())
                files = _field(level / "memory.stat", f"{cache}inactive_file")  # which make room when it is needed
                free.append(int(text) - taken + files)
    return max(0, min(free))


def _field(file: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.split()[0] == name)


def show_trial(trial: Trial) -> None:
    """A line as soon as a trial is over."""
    outcome = "does not fit"
    if trial.fits:
        outcome = f"fits, {trial.peak_memory_gb:,.2f} GB at the peak, {trial.images_per_s:,.1f} images/s"
    print(f"micro-batch {trial.micro_batch}: {outcome}", flush=True)


def show_result(trials: Sequence[Trial], cfg: RunConfig, ranks: int) -> None:
    """The table of the trials, and what to write into the configuration."""
    per_rank = cfg.train.global_batch // ranks
    rows = [
        (
            str(trial.micro_batch),
            f"{per_rank // trial.micro_batch} x {ranks}",
            "yes" if trial.fits else "no",
            f"{trial.peak_memory_gb:,.2f}" if trial.fits else "",
            f"{trial.images_per_s:,.1f}" if trial.fits else "",
        )
        for trial in trials
    ]
    title = f"Micro-batches of a global batch of {cfg.train.global_batch}, on one rank"
    print_table(title, ("micro-batch", "accumulation x ranks", "fits", "peak GB", "images/s"), rows)
    fitting = [trial.micro_batch for trial in trials if trial.fits]
    if not fitting:
        print(
            "Not even one image fits: set engine.recompute=[encoder,layers,decoder], or engine.stage=3 with "
            "engine.offload_optimizer and engine.offload_parameters, or take a smaller model.",
            file=sys.stderr,
        )
        return
    if ranks > 1 and cfg.engine.name == "zero" and cfg.engine.stage:
        print(f"On {ranks} ranks ZeRO partitions what one rank held here in whole: there is more room than was tried.")
    print(f"engine.micro_batch={fitting[-1]}")


def _try(task: _Task) -> Trial:
    """A trial, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "attvae.find_batch"],
        env={key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")},  # one rank
        input=task.model_dump_json(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == -signal.SIGKILL:  # by the system, when memory is short
        return Trial(task.micro_batch, fits=False)
    last = (done.stdout or "\n").splitlines()[-1]
    if done.returncode or not last.startswith("{"):
        raise TrialFailedError(
            f"the trial of micro-batch {task.micro_batch} ended with {done.returncode}:\n{done.stderr.strip()}"
        )
    found = json.loads(last)
    if "bad_input" in found:
        raise ValueError(found["bad_input"])
    return Trial(task.micro_batch, **found)


def _main() -> None:
    """A trial: the task as JSON on stdin, what came of it as the last line of stdout."""
    task = _Task.model_validate_json(sys.stdin.read())
    if task.limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (task.limit_bytes, task.limit_bytes))
    try:
        found: dict[str, object] = _measure(task)
    except ValueError as error:
        found = {"bad_input": str(error)}
    except (MemoryError, torch.OutOfMemoryError):
        found = {"fits": False}
    except RuntimeError as error:
        if not any(words in str(error) for words in OUT_OF_MEMORY):
            raise
        found = {"fits": False}
    print(f"\n{json.dumps(found)}", flush=True)


def _measure(task: _Task) -> dict[str, object]:
    world = rendezvous.join(device=task.run.engine.device)
    try:
        run = Rehearsal(task.run, task.spec, world, BatchPlan(task.micro_batch, task.accumulation))
        for _ in range(STEPS):
            start = time.perf_counter()
            run.train_step()
            if world.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
        return {
            "fits": True,
            "peak_memory_gb": peak_memory_bytes(world.device) / 1e9,
            "images_per_s": task.micro_batch * task.accumulation / seconds,
        }
    finally:
        rendezvous.leave()


if __name__ == "__main__":
    _main()
