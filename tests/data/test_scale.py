"""What a plan and a manifest cost does not grow with the samples. Seconds are measured by benchmarks/plan_scale.py."""

import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from attvae.data import plan as plan_module
from attvae.data.manifest import FILE, Manifest, fingerprint
from attvae.data.plan import Plan
from attvae.data.shard import Shard
from attvae.spec import DataSpec

WINDOW = 16_384


@contextmanager
def peak_bytes() -> Iterator[Callable[[], int]]:
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("samples", "shards", "allowed_mb"), [(1_281_167, 1_282, 2), (100_000_000, 100_000, 10)])
def test_memory_of_a_plan(samples: int, shards: int, allowed_mb: float) -> None:
    """The ids alone would take 10 and 800 MB."""
    sizes = np.full(shards, samples // shards)
    sizes[: samples % shards] += 1
    with peak_bytes() as peak:
        plan = Plan(sizes, WINDOW, seed=0)
        for position in (0, samples // 2, samples - 64):  # the last batch reaches into the next epoch
            _, ids = plan.order(np.arange(position, position + 128))
            plan.locate(ids)
        assert peak() < allowed_mb * 1e6
    assert plan.samples == samples


def test_memory_of_a_manifest(tmp_path: Path) -> None:
    shards = 3000
    spec = DataSpec(height=64, width=64, channels=3, num_bits=8, max_value=255)
    splits = {
        "train": tuple(Shard(file=f"train-{n:06d}.tar", samples=1000, bytes=1, xxh3=f"{n:016x}") for n in range(shards))
    }
    written = Manifest(
        name="none", version="1", source="none", fingerprint=fingerprint(spec, splits), spec=spec, splits=splits
    )
    (tmp_path / FILE).write_text(written.model_dump_json(indent=1))
    del splits
    with peak_bytes() as peak:
        found = Manifest.read(tmp_path)
        assert peak() < 3000 * shards  # 300 MB for 100,000
    assert found.splits == written.splits


def test_each_order_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of batches that cross windows and epochs: no shuffle is made twice, nor one that nobody needs."""
    drawn: Counter[tuple[int, int]] = Counter()
    permute = plan_module._permutation

    def counted(length: int, seed: int, epoch: int, part: int) -> np.ndarray:
        drawn[epoch, part] += 1
        return permute(length, seed, epoch, part)

    monkeypatch.setattr(plan_module, "_permutation", counted)
    plan = Plan([10] * 100, window=64, seed=0)
    for first in range(0, 2 * plan.samples, 50):
        plan.order(np.arange(first, first + 50))
    shards, windows = 1, -(-plan.samples // 64)
    assert drawn == dict.fromkeys([(epoch, part) for epoch in (0, 1) for part in range(shards + windows)], 1)
