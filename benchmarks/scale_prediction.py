"""The prediction of attvae/scale.py against a measurement: from one CPU rank to two.

    .venv/bin/python benchmarks/scale_prediction.py > benchmarks/results/scale_prediction_HARDWARE_DATE.json

Measured first: an update of one rank, alone on its core and with a second run on the other core (two cores share caches
and memory, which the prediction does not know of), and sums over two ranks, a small one and one of the gradients' size.
Predicted from these: an update of two ranks. Measured last, in the same rounds: that update.
"""

import json
import os
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from attvae import scale
from attvae.bench.scaling import measure_scaling
from attvae.config import RunConfig, load
from attvae.engine.batch import BatchPlan
from attvae.model.flops import training_flops
from attvae.model.vae import DeepVAE
from attvae.scale import Cluster, Collective, Layout, Link, Workload

CONFIG = Path("configs/photos32.yaml")
IMAGES = "data.spec={height: 32, width: 32, channels: 3, num_bits: 8, max_value: 255}"
BATCH, STEPS, REPEATS = 32, 5, 9
SUMS = 200
PORT = 29_555


def link(elements: int) -> Link:
    """Latency of a step and bandwidth of gloo's all-reduce between two processes, each on its own core."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    cores = sorted(os.sched_getaffinity(0))[:2]
    ranks = [context.Process(target=_sum, args=(rank, core, elements, theirs)) for rank, core in enumerate(cores)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    small_s, large_s = ours.recv()
    latency_s = small_s / 2  # two steps: a reduce-scatter and a gather
    sent = scale.sent_bytes(Collective("all_reduce", elements * scale.FP32, 1), 2)
    return Link(gb_per_s=sent / (large_s - small_s) / 1e9, latency_us=latency_s * 1e6)


def _sum(rank: int, core: int, elements: int, found: Connection) -> None:
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{PORT}", rank=rank, world_size=2)
    times = [_median_s(torch.zeros(size)) for size in (1, elements)]
    if rank == 0:
        found.send(times)
    dist.destroy_process_group()


def _median_s(numbers: torch.Tensor) -> float:
    seconds = []
    for _ in range(SUMS):
        start = time.perf_counter()
        dist.all_reduce(numbers)
        seconds.append(time.perf_counter() - start)
    return median(seconds[SUMS // 10 :])


def predicted_ms(cfg: RunConfig, work: Workload, one: dict[str, float], between: Link) -> float:
    """An update of two ranks, from the phases of one rank's."""
    compute_s = (one["data"] + one["forward"] + one["backward"]) / 1000
    update_s = one["step"] / 1000
    cluster = Cluster(inside=between, memory_gb_per_s=work.parameters * scale.UPDATE_BYTES / update_s / 1e9)
    tflops = BATCH * work.flops_per_image / compute_s / 1e12
    return 1000 * scale.predict(cfg.engine, work, BatchPlan(BATCH, 1), Layout(2, 2), cluster, tflops).seconds


def main() -> None:
    cfg = load(CONFIG, [IMAGES])
    spec = cfg.data.spec
    assert spec is not None
    with torch.device("meta"):
        parameters = sum(p.numel() for p in DeepVAE(cfg.model, spec).parameters())
    work = Workload(parameters, training_flops(cfg.model, spec, torch.device("cpu")), 0, 0, 0)
    between = link(parameters)
    found = measure_scaling(cfg, BATCH, STEPS, REPEATS)
    times = found["ms_per_step_and_rank"]
    measured = times["two"]["wall"]
    from_alone, from_busy = (predicted_ms(cfg, work, times[base], between) for base in ("one", "ceiling"))
    figures = {
        "config": str(CONFIG),
        "link": between.model_dump(),
        "measured_ms": measured,
        "predicted_ms": {"one_alone": from_alone, "one_beside_another": from_busy},
        "measured_over_predicted": {
            "one_alone": measured / from_alone,
            "one_beside_another": measured / from_busy,
        },
    }
    print(json.dumps(figures | found, indent=1))


if __name__ == "__main__":
    main()
