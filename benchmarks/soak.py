"""Does a long run over many shards keep its memory and its open files? Trains a tiny model and watches /proc.

    python benchmarks/soak.py

makes a data set of 1,282 shards twice, as raw pixels and as PNG, and trains 20,000 steps on each, reading in the
trainer and in two workers. Once a second it notes the resident memory and the open files of the trainer and of its
workers. It prints a table per epoch, draws them into benchmarks/results/, and fails where the last
epoch has more than 3 % more memory than the second, or more open files: the first one holds the start.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import yaml

from attvae.data.manifest import Format
from attvae.spec import DataSpec
from attvae.tracking.jsonl import read
from data_prep.dataset import Dataset, Image
from data_prep.writer import prepare

REPOSITORY = Path(__file__).parent.parent
SHARD, BATCH, SHARDS_OF_A_WINDOW = 20, 8, 50
FORMATS: tuple[Format, ...] = ("raw", "png")
GROWTH = 0.03

MODEL = {
    "num_layers": 1,
    "latent_channels": 2,
    "encoder_filters": 4,
    "decoder_filters": 4,
    "norm": "group",
    "preprocessing": {"scales": [-2]},
    "encoder": {"scales": [0]},
    "decoder": {"scales": [0]},
    "postprocessing": {"scales": [2]},
    "likelihood": {"kind": "logistic_mixture", "num_mixtures": 1},
}


@dataclass(frozen=True)
class Noise:
    """Images of noise, 8×8, in colour."""

    images: int

    def __len__(self) -> int:
        return self.images

    def read(self, numbers: range) -> Iterator[Image]:
        for number in numbers:
            yield Image(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def make_data(folder: Path, format: Format, shards: int) -> None:
    splits = {"train": Noise(shards * SHARD), "val": Noise(SHARD), "test": Noise(SHARD)}
    spec = DataSpec(height=8, width=8, channels=3, num_bits=8, max_value=255)
    prepare(Dataset("noise", "1", "numpy", "1", spec, format, splits, shard_samples=SHARD), folder)


def configuration(data: Path, workers: int, epoch: int, steps: int) -> dict[str, object]:
    """Validation and a checkpoint about once an epoch: what they leave behind would show as well."""
    often = epoch // 16
    return {
        "data": {"path": str(data), "workers": workers, "window": SHARD * SHARDS_OF_A_WINDOW, "flip": "horizontal"},
        "model": MODEL,
        "train": {"samples": steps * BATCH, "global_batch": BATCH, "lr": 1e-3, "log_every": often},
        "engine": {"precision": "fp32"},
        "eval": {"every": epoch},
        "checkpoint": {"every": often * 16},
        "tracking": {"uri": f"sqlite:///{data.parent}/mlflow.db", "artifacts": f"{data.parent}/artifacts"},
    }


class Seen(NamedTuple):
    """A process at a moment."""

    epoch: int
    bytes: int
    files: int


class Epoch(NamedTuple):
    """Of an epoch: the median of the memory, the least of the open files; of the trainer, and summed over its workers.

    Batches on their way from a worker are open files for a moment; what stays open is in the least.
    """

    epoch: int
    trainer_bytes: float
    trainer_files: float
    workers_bytes: float
    workers_files: float


def watch(config: Path, out: Path, workers: int, epoch_samples: int) -> list[Epoch]:
    """Trains; the figures of each epoch but the last, cut one."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "launch/train.py", str(config), "--out", str(out)]
    with (out.parent / f"{out.name}.log").open("wb") as log:
        trainer = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT)
    seen: defaultdict[int, list[Seen]] = defaultdict(list)
    try:
        while trainer.poll() is None:
            rows = read(out / "metrics.jsonl")
            epoch = int(rows[-1]["samples_seen"]) // epoch_samples if rows else 0
            for process in [trainer.pid, *(child.pid for child in psutil.Process(trainer.pid).children())]:
                try:
                    seen[process].append(Seen(epoch, resident_bytes(process), open_files(process)))
                except (FileNotFoundError, ProcessLookupError):
                    continue  # it has ended
            time.sleep(1)
    finally:
        trainer.kill()
        trainer.wait()
    if trainer.returncode:
        raise RuntimeError((out.parent / f"{out.name}.log").read_text()[-4000:])
    noted = seen.pop(trainer.pid)
    # Those of the training stream; the workers of an evaluation end with it.
    lasting = sorted(seen.values(), key=len)[-workers:] if workers else []
    epochs = []
    for epoch in range(max(s.epoch for s in noted)):
        figures = [
            (statistics.median(s.bytes for s in of_epoch), min(s.files for s in of_epoch))
            for process in [noted, *lasting]
            if (of_epoch := [s for s in process if s.epoch == epoch])
        ]
        if len(figures) == 1 + workers:
            others = [sum(column) for column in zip(*figures[1:], strict=True)] or [0, 0]
            epochs.append(Epoch(epoch, *figures[0], *others))
    return epochs


def resident_bytes(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files(process: int) -> int:
    """Open memory maps of shards are among them: each keeps a descriptor."""
    return len(os.listdir(f"/proc/{process}/fd"))


def faults(epochs: list[Epoch]) -> list[str]:
    first, last = epochs[1], epochs[-1]
    found = []
    for who in ("trainer", "workers"):
        before, after = (getattr(epoch, f"{who}_bytes") for epoch in (first, last))
        if after > before * (1 + GROWTH):
            found.append(f"memory of the {who} grew by {after / before - 1:.1%}")
        before, after = (getattr(epoch, f"{who}_files") for epoch in (first, last))
        if after - before >= last.epoch - first.epoch:  # what is on its way between processes is a file or two
            found.append(f"open files of the {who} grew from {before:g} to {after:g}")
    return found


def print_table(name: str, epochs: list[Epoch]) -> None:
    print(f"\n{name}\nepoch   trainer MB   files   workers MB   files")
    for e in epochs:
        print(
            f"{e.epoch:5}   {e.trainer_bytes / 1e6:10.1f}   {e.trainer_files:5g}"
            f"   {e.workers_bytes / 1e6:10.1f}   {e.workers_files:5g}"
        )


def draw(runs: dict[str, list[Epoch]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (memory, files) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name, epochs in runs.items():
        at = [e.epoch for e in epochs]
        memory.plot(at, [(e.trainer_bytes + e.workers_bytes) / 1e6 for e in epochs], marker=".", label=name)
        files.plot(at, [e.trainer_files + e.workers_files for e in epochs], marker=".", label=name)
    memory.set(xlabel="epoch", ylabel="resident memory, trainer and workers, MB", ylim=(0, None))
    files.set(xlabel="epoch", ylabel="open files, trainer and workers", ylim=(0, None))
    memory.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1282)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--results", type=Path, default=REPOSITORY / "benchmarks" / "results")
    arguments = parser.parse_args()
    epoch_samples = arguments.shards * SHARD
    name = f"soak_{len(os.sched_getaffinity(0))}-cpus_{date.today():%Y-%m-%d}"
    runs: dict[str, list[Epoch]] = {}
    failed: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="attvae-soak-") as folder:
        for format in FORMATS:
            data = Path(folder) / format
            make_data(data, format, arguments.shards)
            for workers in (0, 2):
                run = f"{format}, {workers} workers"
                out = Path(folder) / f"{format}-{workers}"
                config = out.with_suffix(".yaml")
                config.write_text(yaml.safe_dump(configuration(data, workers, epoch_samples, arguments.steps)))
                runs[run] = watch(config, out, workers, epoch_samples)
                print_table(run, runs[run])
                if found := faults(runs[run]):
                    failed[run] = found
    rows = {run: [epoch._asdict() for epoch in epochs] for run, epochs in runs.items()}
    report = {"shards": arguments.shards, "steps": arguments.steps, "batch": BATCH, "runs": rows, "faults": failed}
    (arguments.results / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(runs, arguments.results / f"{name}.png")
    if failed:
        sys.exit("; ".join(f"{run}: {', '.join(found)}" for run, found in failed.items()))


if __name__ == "__main__":
    main()
