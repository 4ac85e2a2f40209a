"""What the order of ImageNet, and of 100 million samples in 100,000 shards, costs a process (Linux).

    .venv/bin/python benchmarks/plan_scale.py > benchmarks/results/plan_scale_HARDWARE_DATE.json

Each figure comes from a fresh process: reading a manifest from the disk, then making the plan and ordering the first
micro-batch. Memory is the growth of the process's resident set at its peak.
"""

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from attvae.data.manifest import FILE, Manifest, fingerprint
from attvae.data.plan import Plan
from attvae.data.shard import Shard
from attvae.spec import DataSpec

WINDOW = 16_384
MICRO_BATCH = 128
SCALES = {"ImageNet": (1_281_167, 1_282), "100 million": (100_000_000, 100_000)}
"""(samples, shards)"""


def write_manifest(folder: Path, samples: int, shards: int) -> None:
    spec = DataSpec(height=64, width=64, channels=3, num_bits=8, max_value=255)
    sizes = [len(part) for part in np.array_split(np.empty(samples, np.int8), shards)]
    train = tuple(
        Shard(file=f"train-{number:06d}.tar", samples=size, bytes=13_312 * size + 1024, xxh3=f"{number:016x}")
        for number, size in enumerate(sizes)
    )
    splits = {"train": train}
    manifest = Manifest(
        name="none", version="1", source="none", fingerprint=fingerprint(spec, splits), spec=spec, splits=splits
    )
    (folder / FILE).write_text(manifest.model_dump_json(indent=1))


def measure(folder: Path) -> dict[str, Any]:
    """Seconds and MB of one process."""
    manifest, read = _cost(lambda: Manifest.read(folder))

    def first_batch() -> Plan:
        plan = Plan([shard.samples for shard in manifest.shards("train")], WINDOW, seed=0)
        _, ids = plan.order(np.arange(MICRO_BATCH))
        plan.locate(ids)
        return plan

    plan, ready = _cost(first_batch)
    _, second_window = _cost(lambda: plan.order(np.arange(WINDOW, WINDOW + MICRO_BATCH)))
    _, next_epoch = _cost(lambda: plan.order(np.arange(plan.samples, plan.samples + MICRO_BATCH)))
    return {"manifest": read, "plan": ready, "next_window": second_window, "next_epoch": next_epoch}


def _cost(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _memory_mb("VmRSS")
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    return result, {"seconds": round(seconds, 4), "mb": round(_memory_mb("VmHWM") - before, 1)}


def _memory_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(kib) * 1024 / 1e6


def main() -> None:
    from attvae.bench.data import machine  # not in the measured processes: it imports the loaders

    scales: dict[str, Any] = {}
    for name, (samples, shards) in SCALES.items():
        with TemporaryDirectory() as folder:
            write_manifest(Path(folder), samples, shards)
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                figures = process.submit(measure, Path(folder)).result()
        scales[name] = {"samples": samples, "shards": shards, **figures}
        print(f"{name}: {figures}", file=sys.stderr)
    print(json.dumps({"machine": machine(), "scales": scales}, indent=1))


if __name__ == "__main__":
    main()
