"""How fast a run is, where its time goes, and how much of the devices it uses: figures for each log line."""

import re
import time
from pathlib import Path
from typing import Literal

import torch

from attvae.engine.rendezvous import World

TRAINING_PHASES = ("data", "forward", "backward", "step")

Precision = Literal["fp32", "autocast", "bf16", "fp16"]

PEAK_TFLOPS = {
    r"Tesla V100-SXM2-\d+GB": (125, 15.7, 15.7),
    r"Tesla V100-PCIE-\d+GB": (112, 14, 14),
    r"(NVIDIA )?A100-(SXM4|PCIE)-\d+GB|NVIDIA A100 80GB PCIe": (312, 156, 19.5),
    r"NVIDIA H100 80GB HBM3": (989.4, 494.7, 66.9),
    r"NVIDIA H100 PCIe": (756, 378, 51.2),
    r"NVIDIA H[12]00 NVL": (835.5, 417.5, 60),
    r"NVIDIA H200": (989.5, 494.5, 67),
    r"NVIDIA B200": (2250, 1100, 75),
    r"NVIDIA L4": (121, 60, 30.3),
    r"NVIDIA L40S": (362.05, 183, 91.6),
    r"(NVIDIA )?A10": (125, 62.5, 31.2),
    r"NVIDIA GeForce RTX 4090": (165.2, 82.6, 82.6),
}
"""The whole name of a GPU -> dense peaks in TFLOP/s: bf16 or fp16 with fp32 sums, TF32, fp32 without tensor cores.

From NVIDIA's data sheets and architecture white papers, halved where they count a sparsity of 2:4. V100 has no TF32.
"""


class Throughput:
    """Turns the times of a rank's phases, and its memory, into metrics. Collective throughout."""

    def __init__(self, world: World, *, flops_per_image: float, global_batch: int, precision: Precision) -> None:
        """
        Args:
            flops_per_image: model FLOPs, forward and backward.
            global_batch: images of one update, over all ranks.
            precision: of the run; it decides which peak is the device's.
        """
        self._world = world
        self._flops_per_image = flops_per_image
        self._global_batch = global_batch
        world.barrier()  # ranks that share a processor share its peak: they measure it at the same time
        self._peak_tflops = sum(world.gather(peak_tflops(world.device, precision)))

    def metrics(self, images: int) -> dict[str, float]:
        """Figures of the time since the last call.

        Args:
            images: that all ranks together have trained on since then, whole global batches.

        Returns:
            `perf/images_per_s` of the phases data, forward, backward and step alone; of each of them
            `perf/<phase>_s_min`, `_mean` and `_max` over the ranks, in seconds per update, and of all together as
            `perf/update_s_*`;
            `perf/peak_memory_gb_*` likewise, since the start of the process, in 10^9 bytes; `perf/tflops`, model FLOPs
            a second and rank; `perf/mfu`, those of all ranks as a fraction of the peak of all.
        """
        seconds = self._world.phases.take()
        updates = images / self._global_batch
        own = [seconds.get(phase, 0.0) / updates for phase in TRAINING_PHASES]
        ranks = self._world.gather([*own, sum(own), peak_memory_bytes(self._world.device) / 1e9])
        figures: dict[str, float] = {}
        names = [*(f"{phase}_s" for phase in TRAINING_PHASES), "update_s", "peak_memory_gb"]
        for name, values in zip(names, zip(*ranks, strict=True), strict=True):
            figures[f"perf/{name}_min"] = min(values)
            figures[f"perf/{name}_mean"] = sum(values) / len(values)
            figures[f"perf/{name}_max"] = max(values)
        # Where one rank writes pictures, the others wait for it in their next phase: the shortest time is training.
        images_per_s = self._global_batch / max(figures["perf/update_s_min"], 1e-9)
        tflops = images_per_s * self._flops_per_image / 1e12
        figures["perf/images_per_s"] = images_per_s
        return figures | {"perf/tflops": tflops / self._world.size, "perf/mfu": tflops / self._peak_tflops}


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held at any time so far: a GPU's by torch's tensors, otherwise the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text()  # of Linux
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


def peak_tflops(device: torch.device, precision: Precision) -> float:
    """The device's peak in TFLOP/s: published for the GPUs in PEAK_TFLOPS, otherwise that of a matrix product here."""
    published = published_tflops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
    return published or measured_tflops(device, precision)


def published_tflops(gpu: str, precision: Precision) -> float | None:
    """The peak of a GPU that PEAK_TFLOPS knows; in fp32 that of TF32 where torch's convolutions may use it."""
    for name, (half, tf32, fp32) in PEAK_TFLOPS.items():
        if re.fullmatch(name, gpu):
            if precision != "fp32":
                return half
            return tf32 if torch.backends.cudnn.allow_tf32 else fp32
    return None


def measured_tflops(device: torch.device, precision: Precision) -> float:
    """TFLOP/s of the fastest of several products of square matrices, in the run's precision and with its threads."""
    dtypes = {"fp32": torch.float32, "autocast": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16}
    size = 8192 if device.type == "cuda" else 1024
    own = torch.Generator(device).manual_seed(0)
    a, b = torch.randn(2, size, size, device=device, generator=own).to(dtypes[precision])
    fastest, end = float("inf"), time.perf_counter() + 0.2
    while time.perf_counter() < end:
        start = time.perf_counter()
        product = a @ b
        float(product[0, 0])  # waits for the GPU
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest / 1e12


def measured_copy_gb_per_s(device: torch.device) -> float:
    """10^9 bytes a second, read and written, of the fastest of several copies within memory, with the run's threads."""
    source = torch.zeros(2**30 if device.type == "cuda" else 2**27, dtype=torch.uint8, device=device)  # beyond caches
    target = torch.zeros_like(source)
    fastest, end = float("inf"), time.perf_counter() + 0.2
    while time.perf_counter() < end:
        start = time.perf_counter()
        target.copy_(source)
        int(target[0])  # waits for the GPU
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * source.nbytes / fastest / 1e9
