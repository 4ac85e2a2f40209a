"""How much memory a checkpoint of the paper's 119M-parameter model takes beyond the model, on a CPU (Linux).

    .venv/bin/python benchmarks/checkpoint_memory.py > benchmarks/results/checkpoint_memory_HARDWARE_DATE.json

Each figure comes from a fresh process with the plain engine: Adamax, so parameters, two moments and the average, filled
with noise. `anonymous` is memory that the process asks for, sampled every millisecond; `resident` is the peak of all
that it holds. Both are what the work adds, in sizes of the checkpoint. A save in the background ends when the disk has
everything; `seconds_held` is how long training waits.
"""

import argparse
import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from attvae import config
from attvae.build_engine import build_engine
from attvae.checkpoint import Checkpoint, CheckpointWriter
from attvae.checkpoint_config import CheckpointConfig
from attvae.engine.batch import divide
from attvae.engine.protocol import Engine
from attvae.engine.rendezvous import World
from attvae.model.vae import DeepVAE

CONFIG = Path("configs/paper/cifar10_attvae16.yaml")
SAMPLES = 480_000


def model_and_engine() -> tuple[nn.Module, Engine]:
    torch.set_num_threads(1)
    cfg = config.load(CONFIG, ["engine.name=plain"])
    assert cfg.data.spec is not None
    model = DeepVAE(cfg.model, cfg.data.spec)
    engine = build_engine(cfg, model, World(0, 1, torch.device("cpu")), divide(cfg.train.global_batch, 1, None))
    for key in engine.optimizer_states:
        for _, state in engine.optimizer_state(key):
            nn.init.normal_(state)
    return model, engine


def save(folder: Path, background: bool) -> dict[str, float]:
    _, engine = model_and_engine()
    writer = CheckpointWriter(folder, engine.world, CheckpointConfig(every=SAMPLES, background=background), step=160)
    held: list[float] = []

    def work() -> None:
        start = time.perf_counter()
        writer.save(engine, SAMPLES, {"samples_seen": SAMPLES, "updates": 3000})
        held.append(time.perf_counter() - start)
        writer.finish()

    figures = cost(work, folder)
    return figures | ({"seconds_held": round(held[0], 2)} if background else {})


def load(folder: Path) -> dict[str, float]:
    model, engine = model_and_engine()

    def work() -> None:
        start = Checkpoint(folder / f"{SAMPLES:012d}")
        start.check_fits(model)
        engine.restore(start.tensor, int(start.state["updates"]), engine.guard)

    return cost(work, folder)


def cost(work: Callable[[], None], folder: Path) -> dict[str, float]:
    """Seconds and peaks of memory, as parts of the size of the checkpoint in the folder."""
    peak, done = 0.0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, memory("RssAnon"))

    sampler = threading.Thread(target=sample, daemon=True)
    Path("/proc/self/clear_refs").write_text("5")  # the resident peak starts anew
    resident, anonymous = memory("VmRSS"), memory("RssAnon")
    sampler.start()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    done.set()
    sampler.join()
    size = sum(file.stat().st_size for file in (folder / f"{SAMPLES:012d}").iterdir())
    return {
        "bytes": size,
        "seconds": round(seconds, 2),
        "peak_extra_anonymous": round((peak - anonymous) / size, 3),
        "peak_extra_resident": round((memory("VmHWM") - resident) / size, 3),
    }


def memory(field: str) -> float:
    """Bytes of this process, as the kernel counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(kib) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", type=Path, help="a folder on the disk to write to; by default that of temporary files")
    on = parser.parse_args().on

    def fresh(function: Callable[..., dict[str, float]], *args: Any) -> dict[str, float]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            return process.submit(function, *args).result()

    with TemporaryDirectory(dir=on) as name:
        folder = Path(name)
        figures = {
            "save": fresh(save, folder / "a", False),
            "save, in the background": fresh(save, folder / "b", True),
            "load": fresh(load, folder / "a"),
        }
    from attvae.bench.data import machine  # not in the measured processes: it imports the loaders

    print(json.dumps({"config": str(CONFIG), "machine": machine(), "figures": figures}, indent=1))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
