"""`attvae profile`: where the time of a training step goes, and how far from the machine's own limits it is.

A rehearsal of the run, on random images, three times over: steps that fill the caches; steps whose parts are timed; and
steps under torch's profiler, which makes everything slower and gives the trace and the operations.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile
from torch.utils._pytree import tree_leaves

from attvae.config import RunConfig
from attvae.engine import rendezvous
from attvae.engine.batch import BatchPlan
from attvae.engine.phases import Phases
from attvae.engine.throughput import (
    TRAINING_PHASES,
    measured_copy_gb_per_s,
    measured_tflops,
    peak_memory_bytes,
)
from attvae.model.flops import forward_flops_by_part, training_flops
from attvae.model.parts import parts
from attvae.rehearsal import Rehearsal
from attvae.run_folder import write_json
from attvae.spec import DataSpec
from attvae.tracking.console import print_table

WARMUP_STEPS = 3
SHOWN_OPERATIONS = 10
RATE_TRIES = 5  # of a fifth of a second each


def profile(cfg: RunConfig, spec: DataSpec, batch: int, steps: int, out: Path) -> dict[str, Any]:
    """Trains on this rank alone, and writes `trace.json` (for chrome://tracing or ui.perfetto.dev) and `profile.json`.

    Args:
        batch: images of each step.
        steps: that are timed, and as many that are traced.
        out: a folder, made if need be.

    Returns:
        What `profile.json` holds; times in ms per step.

    Raises:
        ValueError: the folder cannot be written, or the configuration does not fit the images or the device.
    """
    if min(batch, steps) < 1:
        raise ValueError(f"found batch={batch}, steps={steps}: expected at least 1 of each")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write into {out} ({error.strerror}): choose another folder with --out") from error
    world = rendezvous.join(device=cfg.engine.device)
    try:
        device = world.device
        run = Rehearsal(cfg, spec, world, BatchPlan(batch, accumulation=1))
        for _ in range(WARMUP_STEPS):
            run.train_step()
        world.phases.take()
        clock = _PartClock(device, world.phases)
        seconds = []
        with nullcontext() if cfg.engine.compile else clock.on(run.model):  # what is compiled has no parts to time
            for _ in range(steps):
                run.train_step()
                seconds.append(world.phases.take())  # waits for the GPU
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        with torch_profile(activities=activities) as traced:
            for _ in range(steps):
                run.train_step()
            world.phases.take()
        traced.export_chrome_trace(str(out / "trace.json"))
        step_s = median(sum(each.get(phase, 0.0) for phase in TRAINING_PHASES) for each in seconds)
        rates = {
            "matrix_tflops": max(measured_tflops(device, cfg.engine.precision) for _ in range(RATE_TRIES)),
            "copy_gb_per_s": max(measured_copy_gb_per_s(device) for _ in range(RATE_TRIES)),
        }
        tflops = training_flops(cfg.model, spec, device) * batch / step_s / 1e12
        found = {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "precision": cfg.engine.precision,
            "batch": batch,
            "steps": steps,
            "step_ms": 1000 * step_s,
            "phases_ms": {phase: 1000 * median(each.get(phase, 0.0) for each in seconds) for phase in TRAINING_PHASES},
            "images_per_s": batch / step_s,
            "peak_memory_gb": peak_memory_bytes(device) / 1e9,
            "tflops": tflops,
            "of_matrix_rate": tflops / rates["matrix_tflops"],
            **rates,
            "operations": _operations(traced, steps, device),
            "parts": _parts(clock, forward_flops_by_part(cfg.model, spec, device), batch, steps, rates),
            "trace": str(out / "trace.json"),
        }
    finally:
        rendezvous.leave()
    write_json(out / "profile.json", found)
    return found


class _PartClock:
    """Times the forward passes of the model's parts, and counts the bytes of what they are given and give.

    Not their repetition in a backward pass that recomputes: no part's forward pass takes twice its time.
    """

    def __init__(self, device: torch.device, phases: Phases) -> None:
        self._device = device
        self._phases = phases
        self._spans: list[tuple[str, Any, Any]] = []
        self.bytes: dict[str, int] = defaultdict(int)

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        hooks = []
        for part, _, module in parts(model):
            begin, end = self._hooks(part)
            hooks += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def seconds(self) -> dict[str, float]:
        """Of each part, over all its passes."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds: dict[str, float] = defaultdict(float)
        for part, begun, ended in self._spans:
            seconds[part] += begun.elapsed_time(ended) / 1000 if self._device.type == "cuda" else ended - begun
        return seconds

    def _hooks(self, part: str) -> tuple[Callable[..., None], Callable[..., None]]:
        begun: list[Any] = []

        def begin(module: nn.Module, args: Any) -> None:
            if self._phases.name == "forward":
                begun.append(self._now())

        def end(module: nn.Module, args: Any, result: Any) -> None:
            if self._phases.name == "forward":
                self._spans.append((part, begun.pop(), self._now()))
                self.bytes[part] += sum(x.nbytes for x in tree_leaves((args, result)) if isinstance(x, Tensor))

        return begin, end

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark


def _operations(traced: torch_profile, steps: int, device: torch.device) -> list[dict[str, Any]]:
    """Those that take most by themselves: on a GPU its time, otherwise the processor's."""
    clock = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    events = [event for event in traced.key_averages() if not event.is_user_annotation]
    total_us = sum(getattr(event, clock) for event in events)
    return [
        {
            "operation": event.key,
            "calls": event.count / steps,
            "ms": getattr(event, clock) / steps / 1000,
            "share": getattr(event, clock) / total_us,
        }
        for event in sorted(events, key=lambda event: -getattr(event, clock))[:SHOWN_OPERATIONS]
    ]


def _parts(
    clock: _PartClock, flops: dict[str, int], batch: int, steps: int, rates: dict[str, float]
) -> list[dict[str, Any]]:
    """Of each part's forward pass: time, model FLOPs of an image, bytes that enter and leave, and both rates."""
    rows = []
    for part, all_s in clock.seconds().items():
        s = all_s / steps
        tflops, gb_per_s = flops[part] * batch / s / 1e12, clock.bytes[part] / steps / s / 1e9
        rows.append(
            {
                "part": part,
                "gflop_per_image": flops[part] / 1e9,
                "forward_ms": 1000 * s,
                "tflops": tflops,
                "of_matrix_rate": tflops / rates["matrix_tflops"],
                "gb_per_s": gb_per_s,
                "of_copy_rate": gb_per_s / rates["copy_gb_per_s"],
            }
        )
    return sorted(rows, key=lambda row: -row["forward_ms"])


def show_profile(found: dict[str, Any]) -> None:
    """The tables."""
    print_table(
        f"The {SHOWN_OPERATIONS} most expensive operations of a step ({found['device']})",
        ("", "calls", "ms", "share"),
        [
            (row["operation"], f"{row['calls']:,.0f}", f"{row['ms']:,.2f}", f"{row['share']:.1%}")
            for row in found["operations"]
        ],
    )
    if found["parts"]:
        print_table(
            "Parts of the model: an image's FLOPs, and the forward pass of a step",
            ("", "GFLOP", "ms", "of the matrix rate", "of the copy rate"),
            [
                (
                    row["part"],
                    f"{row['gflop_per_image']:.3g}",
                    f"{row['forward_ms']:,.2f}",
                    f"{row['of_matrix_rate']:.1%}",
                    f"{row['of_copy_rate']:.1%}",
                )
                for row in found["parts"]
            ],
        )
    phases = ", ".join(f"{phase} {ms:,.1f}" for phase, ms in found["phases_ms"].items())
    print(
        f"a step of {found['batch']} images in {found['precision']}: {found['step_ms']:,.1f} ms ({phases}), "
        f"{found['images_per_s']:,.1f} images/s, at most {found['peak_memory_gb']:,.2f} GB"
    )
    print(
        f"achieved {found['tflops']:,.3f} TFLOP/s of {found['matrix_tflops']:,.3f} attainable "
        f"({found['of_matrix_rate']:.1%}: matrix products here); a copy here moves {found['copy_gb_per_s']:,.1f} GB/s"
    )
    print(f"trace: {found['trace']}, for chrome://tracing or ui.perfetto.dev")
