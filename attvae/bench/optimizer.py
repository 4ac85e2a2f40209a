"""An update of Adamax with clipping and the average of the weights: torch's optimizer and ours, on a model's tensors.

All contenders update the same weights from the same gradients, one after the other in each repeat, so that a busy
machine strikes all alike:

* `torch`: `clip_grad_norm_`, `torch.optim.Adamax` in both its forms on a CPU, and each of torch's two ways to the
  average: `AveragedModel`, or one `_foreach_lerp_`;
* `ours, torch's operations`: what runs without a C compiler, clipped by `clip_grad_norm_`;
* `ours`: what `optim.fused=auto` chooses on the CPU, after `get_total_norm`.
"""

import time
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from attvae.bench.data import machine
from attvae.bench.spread import as_text, spread
from attvae.config import RunConfig
from attvae.data.loader import open_manifest
from attvae.model.vae import DeepVAE
from attvae.optim.adamax import Adamax
from attvae.optim.choose import choose
from attvae.optim.config import OptimConfig

WARMUP_ROUNDS = 2
LR, DECAY = 1e-6, 0.999
OURS = "ours"


class Seconds(NamedTuple):
    """Of one update."""

    wall: float
    cpu: float
    """That the processor worked for it, on all threads together: other work beside it counts less."""


def measure_optimizers(cfg: RunConfig, repeats: int) -> dict[str, Any]:
    """Measures on the CPU; says on stderr how far it is.

    Args:
        cfg: of the model, whose shapes are taken; weights and gradients are random.
        repeats: rounds in which each contender makes one update.

    Returns:
        `environment`, the settings, and `rows`: of each contender the milliseconds of an update, wall time and the
        processor's, and how many times ours is faster, repeat by repeat.

    Raises:
        ValueError: there is nothing to repeat.
    """
    if repeats < 1:
        raise ValueError(f"found repeats={repeats}: expected at least 1")
    with torch.device("meta"):
        model = DeepVAE(cfg.model, cfg.data.spec or open_manifest(cfg.data).spec)
    noise = torch.Generator().manual_seed(0)
    params = [nn.Parameter(0.05 * torch.randn(p.shape, generator=noise)) for p in model.parameters()]
    for p in params:
        p.grad = 0.01 * torch.randn(p.shape, generator=noise)
    steps, chosen = contenders(params)
    console = Console(stderr=True)
    seconds: dict[str, list[Seconds]] = {name: [] for name in steps}
    for repeat in range(-WARMUP_ROUNDS, repeats):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            if repeat >= 0:
                seconds[name].append(Seconds(time.perf_counter() - wall, time.process_time() - cpu))
        if repeat >= 0:
            console.print(f"repeat {repeat + 1} of {repeats}: ours {1000 * seconds[OURS][-1][0]:,.1f} ms")
    return {
        "environment": machine(),
        "parameters": sum(p.numel() for p in params),
        "tensors": len(params),
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "ours": chosen,
        "rows": rows(seconds),
    }


def contenders(params: Sequence[nn.Parameter]) -> tuple[dict[str, Callable[[], None]], str]:
    """One update by each contender, the weights' gradients being there; and what ours is."""
    limit = float(nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])) / 2
    reference = torch.optim.Adamax(params, lr=LR, eps=1e-3)
    averages = [p.detach().clone() for p in params]
    weights = nn.ParameterList(params)
    averaged = AveragedModel(weights, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    config = OptimConfig(ema_decay=DECAY)
    ours, chosen = choose(params, config, torch.device("cpu"))
    by_torch = Adamax(params, config)
    ours.create_state()
    by_torch.state = ours.state  # memory for one of them

    def of_torch(foreach: bool, average: Callable[[], None]) -> Callable[[], None]:
        def step() -> None:
            nn.utils.clip_grad_norm_(params, limit)
            reference.param_groups[0]["foreach"] = foreach
            reference.step()
            average()

        return step

    @torch.no_grad()
    def lerp() -> None:
        torch._foreach_lerp_(averages, list[Tensor](params), 1 - DECAY)

    def before() -> None:
        nn.utils.clip_grad_norm_(params, limit)
        by_torch.step()

    def now() -> None:
        ours.clip(float(nn.utils.get_total_norm([p.grad for p in params if p.grad is not None])), limit)
        ours.step()

    for optimizer in (ours, by_torch):
        optimizer.set_lr(LR)
    forms = {"foreach": True, "for-loop": False}
    means = {"AveragedModel": lambda: averaged.update_parameters(weights), "foreach lerp": lerp}
    steps = {f"torch {form}, {mean}": of_torch(forms[form], means[mean]) for form, mean in product(forms, means)}
    return {**steps, "ours, torch's operations": before, OURS: now}, chosen


def rows(seconds: dict[str, list[Seconds]]) -> list[dict[str, Any]]:
    """A row for each contender."""
    found = []
    for name, times in seconds.items():
        row: dict[str, Any] = {"optimizer": name}
        for clock in Seconds._fields:
            own, ours = ([getattr(each, clock) for each in of] for of in (times, seconds[OURS]))
            row[f"{clock}_ms"] = spread([1000 * t for t in own])
            row[f"ours_is_faster_{clock}"] = spread([t / mine for t, mine in zip(own, ours, strict=True)])
        found.append(row)
    return found


def table(found: dict[str, Any]) -> Table:
    """The rows, for people."""
    shown = Table(
        title=f"An update of {found['parameters']:,} parameters in {found['tensors']:,} tensors, "
        f"{found['threads']} threads: median (from the fastest to the slowest of {found['repeats']})"
    )
    shown.add_column("optimizer")
    for name in ("ms", "processor's ms", "ours is faster by", "in processor time by"):
        shown.add_column(name, justify="right")
    for row in found["rows"]:
        cells = [as_text(row[name], 0) for name in ("wall_ms", "cpu_ms")]
        cells += [as_text(row[name], 2) for name in ("ours_is_faster_wall", "ours_is_faster_cpu")]
        shown.add_row(row["optimizer"], *cells)
    return shown
