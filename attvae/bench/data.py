"""Loader throughput: ours, webdataset's own pipeline, and a folder of image files, side by side on the same images.

Each measurement is one whole epoch in a fresh process, from the start of the iteration (workers are not running yet)
to the last image; the files were read once before, so that they come from the page cache. Repeats go round all
contenders, so that a busy machine strikes all alike.
"""

import multiprocessing
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
import xxhash
from numpy import ndarray
from rich.console import Console
from rich.table import Table

import attvae
from attvae.bench.loaders import Contender, Task, batches, files
from attvae.bench.photo_crops import PhotoCrops
from attvae.data.manifest import Format, Manifest

CONTENDERS: tuple[Contender, ...] = get_args(Contender)
PROBED = 1000
"""Of so many images, the pixels of one are compared between the contenders."""


class Case(NamedTuple):
    """Images of size × size pixels in a format, delivered as they are stored or scaled."""

    name: str
    format: Format
    size: int
    scaled_to: int | None = None


CASES = (
    Case("raw32", "raw", 32),
    Case("raw64", "raw", 64),
    Case("png32", "png", 32),
    Case("jpg256to64", "jpg", 256, scaled_to=64),
)


class Epoch(NamedTuple):
    """One epoch of one contender.

    Attributes:
        ids_xxh3: of the delivered numbers, sorted.
        probe: sum of all values of every 1,000th image, weighted with its number: mirroring does not change it.
    """

    images_per_s: float
    seconds: float
    batches: int
    ids_xxh3: str
    probe: int


def measure_loaders(
    names: Sequence[str] | None,
    images: int,
    workers: Sequence[int],
    repeats: int,
    batch_size: int,
    keep: Path | None,
) -> dict[str, Any]:
    """Measures the cases; says on stderr how far it is and what it found.

    Args:
        names: of the cases; None for all.
        workers: numbers of worker processes; each contender is judged by its best one.
        keep: folder for the images, which stay there. None: a temporary one, emptied after each case.

    Returns:
        Machine, settings, and per case all measurements, the best of each contender, and the ratios of ours to theirs.

    Raises:
        ValueError: settings that cannot be measured.
    """
    if images < 4 or repeats < 1 or batch_size < 1 or min(workers, default=-1) < 0:
        raise ValueError(
            f"found {images} images, {repeats} repeats, batches of {batch_size}, workers {list(workers)}: "
            "expected at least 4 images, 1 repeat, batches of 1, and numbers of workers from 0"
        )
    known = [case.name for case in CASES]
    if unknown := set(names or ()) - set(known):
        raise ValueError(f"no case {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    found: dict[str, Any] = {
        "machine": machine(),
        "images": images,
        "batch_size": batch_size,
        "repeats": repeats,
        "cases": {},
    }
    console = Console(stderr=True)
    for case in CASES:
        if not names or case.name in names:
            with _made(case, images, keep, console) as folder:
                epochs = _measure(case, folder, images, workers, repeats, batch_size, console)
                shards = Manifest.read(folder / "shards").shards("train")
            found["cases"][case.name] = {
                "shards": len(shards),
                "shard_bytes": sum(shard.bytes for shard in shards),
                **summary(epochs),
            }
    console.print(_table(found["cases"]))
    return found


def epoch(batches: Iterable[Any], images: int, shape: tuple[int, int, int]) -> Epoch:
    """Runs through one epoch of batches of uint8 images of `shape` (channels, height, width).

    Raises:
        RuntimeError: the batches are not contiguous uint8 of this shape, or hold not every image once.
    """
    delivered: list[ndarray] = []
    probe = count = 0
    start = time.perf_counter()
    for x, numbers, *_ in batches:
        if x.dtype != torch.uint8 or not x.is_contiguous() or x.shape[1:] != shape:
            raise RuntimeError(f"a batch of {x.dtype} {tuple(x.shape)}, expected contiguous uint8 of {shape}")
        ids = numbers.numpy()[: images - count]  # ours goes on into the next epoch
        delivered.append(ids)
        for row in np.flatnonzero(ids % PROBED == 0).tolist():
            probe += (int(ids[row]) + 1) * int(x[row].sum(dtype=torch.int64))
        count += len(ids)
        if count == images:
            break
    seconds = time.perf_counter() - start
    ordered = np.sort(np.concatenate(delivered))
    if not np.array_equal(ordered, np.arange(images)):
        raise RuntimeError(f"{count} images delivered, {len(np.unique(ordered))} different ones, expected {images}")
    return Epoch(images / seconds, seconds, len(delivered), xxhash.xxh3_64_hexdigest(ordered.tobytes()), probe)


def summary(epochs: dict[Contender, dict[int, list[Epoch]]]) -> dict[str, Any]:
    """What was measured of a case: per contender and number of workers; and how ours compares.

    Raises:
        RuntimeError: the contenders did not deliver the same images.
    """
    everything = [one for counts in epochs.values() for repeats in counts.values() for one in repeats]
    for name in ("ids_xxh3", "probe"):
        if len(values := {getattr(one, name) for one in everything}) > 1:
            raise RuntimeError(f"the contenders delivered different images: {name} {values}")
    contenders: dict[str, Any] = {}
    for contender, counts in epochs.items():
        measured = {str(workers): _statistics(repeats) for workers, repeats in counts.items()}
        best = max(measured, key=lambda workers: measured[workers]["images_per_s"]["median"])
        contenders[contender] = {
            "best_workers": int(best),
            "images_per_s": measured[best]["images_per_s"],
            "workers": measured,
        }
    ours = contenders["attvae"]["images_per_s"]
    others = {name: found["images_per_s"] for name, found in contenders.items() if name != "attvae"}
    return {
        "ids_xxh3": everything[0].ids_xxh3,
        "probe": everything[0].probe,
        "ratios": {
            name: {"median": ours["median"] / rate["median"], "worst": ours["min"] / rate["max"]}
            for name, rate in others.items()
        },
        "contenders": contenders,
    }


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpus = Path("/proc/cpuinfo")  # of Linux
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    packages = ("torch", "numpy", "webdataset", "pillow", "simplejpeg")
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "load_average_1min": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "attvae": attvae.__version__,
        **{package: version(package) for package in packages},
    }


@contextmanager
def _made(case: Case, images: int, keep: Path | None, console: Console) -> Iterator[Path]:
    """A folder with the images of a case."""
    place = keep or Path(tempfile.mkdtemp(prefix="attvae-bench-"))
    try:
        folder = place / f"{case.name}-{images}"
        console.print(f"{case.name}: {images:,} images in {folder}")
        PhotoCrops(images, case.size, case.format).make(folder)
        yield folder
    finally:
        if keep is None:
            shutil.rmtree(place)


def _measure(
    case: Case,
    folder: Path,
    images: int,
    workers: Sequence[int],
    repeats: int,
    batch_size: int,
    console: Console,
) -> dict[Contender, dict[int, list[Epoch]]]:
    epochs: dict[Contender, dict[int, list[Epoch]]] = {name: {count: [] for count in workers} for name in CONTENDERS}
    size = case.scaled_to or case.size
    for repeat in range(1, repeats + 1):
        for contender in CONTENDERS:
            for count in workers:
                task = Task(folder, case.scaled_to, batch_size, count)
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                    found = process.submit(_run, contender, task, images, (3, size, size)).result()
                epochs[contender][count].append(found)
                console.print(
                    f"{case.name} {contender}, {count} workers, repeat {repeat} of {repeats}: "
                    f"{found.images_per_s:,.0f} images/s ({found.seconds:.1f} s)"
                )
    return epochs


def _run(contender: Contender, task: Task, images: int, shape: tuple[int, int, int]) -> Epoch:
    """A measurement, in its own process."""
    torch.set_num_threads(1)
    for path in files(contender, task.folder):
        with path.open("rb", buffering=0) as file:
            while file.read(2**22):
                pass
    return epoch(batches(contender, task), images, shape)


def _statistics(repeats: Sequence[Epoch]) -> dict[str, Any]:
    rates = [one.images_per_s for one in repeats]
    return {
        "images_per_s": {"median": median(rates), "min": min(rates), "max": max(rates)},
        "seconds": [one.seconds for one in repeats],
        "batches": repeats[0].batches,
    }


def _table(cases: dict[str, Any]) -> Table:
    table = Table(title="Loader throughput, images/s (from the slowest to the fastest repeat)")
    table.add_column("case")
    table.add_column("loader")
    for name in ("workers", "median", "from", "to", "attvae is faster by"):
        table.add_column(name, justify="right")
    for name, case in cases.items():
        for contender, found in case["contenders"].items():
            for workers, measured in found["workers"].items():
                rate, best = measured["images_per_s"], int(workers) == found["best_workers"]
                ratio = case["ratios"][contender]["median"] if best and contender in case["ratios"] else None
                rates = [f"{rate[key]:,.0f}" for key in ("median", "min", "max")]
                table.add_row(
                    name, contender, workers, *rates, f"{ratio:.2f}" if ratio else "", style="bold" if best else None
                )
        table.add_section()
    return table
