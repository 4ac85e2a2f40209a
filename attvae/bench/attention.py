"""Depth-wise attention of a whole stack of layers on the CPU: as published, and ours; layer l attends to l contexts.

In each repeat all of it runs once, one after the other, on one thread, so that a busy machine strikes all alike:

* `published`: the authors' formulation, in which every layer stacks all earlier contexts and permutes them for a matrix
  product at each pixel; output, then the gradients of all queries and slots;
* `ours`: what `engine.depth_attention=auto` takes here, likewise;
* `forward`: ours without gradients;
* `floor`: reads the keys and values that each layer attends to, once: torch's sum of each slot, value and key at once.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from attvae.bench.data import machine
from attvae.kernels.depth_attention.choose import DepthAttention, choose
from attvae.kernels.depth_attention.slot_gradient import cut

BATCH, CHANNELS, KEY_CHANNELS, SIZE = 4, 256, 20, 16


class Seconds(NamedTuple):
    wall: float
    cpu: float
    """That the core worked: other work on it does not count, though it takes its share of caches and memory."""


class Stack(NamedTuple):
    """Query and slot (value || key) of each layer, and the gradient of what each layer but the first attends to."""

    queries: list[Tensor]
    slots: list[Tensor]
    grads: list[Tensor]


class Form(NamedTuple):
    """How slots are cut into value and key, and how layers attend to them."""

    cut: Callable[[Tensor, int], Sequence[Tensor]]
    attend: DepthAttention


def measure_attention(layers: Sequence[int], repeats: int, *, channels_last: bool = False) -> dict[str, Any]:
    """Measures on the CPU; says on stderr how far it is.

    Args:
        layers: a stack of each of these heights.
        channels_last: slots are channels-last maps, as the model has them; else channel after channel.

    Returns:
        `environment`, the settings, and `rows`, as `row` makes them.

    Raises:
        ValueError: there is nothing to measure.
    """
    if repeats < 1 or min(layers, default=0) < 2:
        raise ValueError(
            f"found layers={[*layers]}, repeats={repeats}: expected at least 2 layers, the first of which has nothing "
            "to attend to, and 1 repeat"
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [_measure(made(height, channels_last), repeats, Console(stderr=True)) for height in layers]
    finally:
        torch.set_num_threads(threads)
    return {
        "environment": machine(),
        "setting": {
            "batch": BATCH,
            "channels": CHANNELS,
            "key_channels": KEY_CHANNELS,
            "map": [SIZE, SIZE],
            "layout": "channels last" if channels_last else "channel after channel",
            "ours": _ours()[1],
            "threads": 1,
            "clock": "CPU time",
        },
        "repeats": repeats,
        "rows": rows,
    }


def published(query_BKHW: Tensor, keys_BKHW: Sequence[Tensor], values_BCHW: Sequence[Tensor]) -> Tensor:
    """As the authors compute it."""
    keys_BHWnK, values_BHWnC = (
        torch.stack([*slots], dim=1).permute(0, 3, 4, 1, 2) for slots in (keys_BKHW, values_BCHW)
    )
    weights_BHW1n = (query_BKHW.permute(0, 2, 3, 1).unsqueeze(3) @ keys_BHWnK.transpose(3, 4)).softmax(dim=4)
    return (weights_BHW1n @ values_BHWnC).squeeze(3).permute(0, 3, 1, 2)


PUBLISHED = Form(lambda slot, channels: slot.split([channels, slot.shape[1] - channels], dim=1), published)


def ours() -> Form:
    return Form(cut, _ours()[0])


def _ours() -> tuple[DepthAttention, str]:
    maps = [torch.zeros(1, 1, 1, 1)]
    return choose("auto", maps[0], maps, maps)


def made(height: int, channels_last: bool) -> Stack:
    """Random maps of `height` layers."""
    noise = torch.Generator().manual_seed(0)
    order = torch.channels_last if channels_last else torch.contiguous_format

    def maps(channels: int) -> list[Tensor]:
        drawn = (torch.randn(BATCH, channels, SIZE, SIZE, generator=noise) for _ in range(height))
        return [each.contiguous(memory_format=order) for each in drawn]

    stack = Stack(maps(KEY_CHANNELS), maps(CHANNELS + KEY_CHANNELS), maps(CHANNELS)[1:])
    for leaf in (*stack.queries, *stack.slots):
        leaf.requires_grad_()
    return stack


def outputs(form: Form, stack: Stack) -> Iterator[Tensor]:
    """Of all layers but the first."""
    values, keys = zip(*(form.cut(slot, CHANNELS) for slot in stack.slots), strict=True)
    return (form.attend(stack.queries[n], keys[:n], values[:n]) for n in range(1, len(stack.queries)))


def gradients(form: Form, stack: Stack) -> tuple[Tensor, ...]:
    """Of the queries and slots that take part."""
    return torch.autograd.grad([*outputs(form, stack)], [*stack.queries[1:], *stack.slots[:-1]], stack.grads)


def saved_bytes(form: Form, stack: Stack) -> int:
    """What autograd keeps from the forward to the backward pass, the slots left out."""
    own = {slot.untyped_storage().data_ptr() for slot in stack.slots}
    found: dict[int, int] = {}

    def look(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):
        kept = [*outputs(form, stack)]
    assert kept[-1].requires_grad  # the graph holds what was found: no storage took the place of another
    return sum(size for pointer, size in found.items() if pointer not in own)


@torch.no_grad()
def _read(stack: Stack) -> None:
    for n in range(1, len(stack.slots)):
        for slot in stack.slots[:n]:
            slot.sum()  # faster than value and key by themselves


def _measure(stack: Stack, repeats: int, console: Console) -> dict[str, Any]:
    """A row; the first round warms up, and checks that both compute the same."""
    own = ours()
    for theirs, found in zip(gradients(PUBLISHED, stack), gradients(own, stack), strict=True):
        torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4)

    def forward() -> None:
        with torch.no_grad():
            for _ in outputs(own, stack):  # none is held while the next is made, as in a model
                pass

    tasks: dict[str, Callable[[], Any]] = {
        "published": lambda: gradients(PUBLISHED, stack),
        "ours": lambda: gradients(own, stack),
        "forward": forward,
        "floor": lambda: _read(stack),
    }
    seconds: dict[str, list[Seconds]] = {name: [] for name in tasks}
    for repeat in range(repeats + 1):
        for name, task in tasks.items():
            wall, cpu = time.perf_counter(), time.process_time()
            task()
            if repeat:
                seconds[name].append(Seconds(time.perf_counter() - wall, time.process_time() - cpu))
        if repeat:
            shown = ", ".join(f"{name} {1000 * times[-1].cpu:,.1f}" for name, times in seconds.items())
            console.print(f"{len(stack.queries)} layers, repeat {repeat} of {repeats}, ms of CPU time: {shown}")
    return row(len(stack.queries), seconds, saved_bytes(own, stack))


def row(layers: int, seconds: dict[str, list[Seconds]], saved: int) -> dict[str, Any]:
    """The figures of one stack: medians of CPU time, ratios repeat by repeat; `spread` from least to largest."""
    cpu = {name: [1000 * each.cpu for each in times] for name, times in seconds.items()}
    speedups = [theirs / ours for theirs, ours in zip(cpu["published"], cpu["ours"], strict=True)]
    over_floor = [forward / floor for forward, floor in zip(cpu["forward"], cpu["floor"], strict=True)]
    return {
        "layers": layers,
        "published_ms": median(cpu["published"]),
        "ours_ms": median(cpu["ours"]),
        "speedup": median(speedups),
        "forward_ms": median(cpu["forward"]),
        "floor_ms": median(cpu["floor"]),
        "forward_over_floor": median(over_floor),
        "saved_mb": saved / 1e6,
        "spread": {
            **{f"{name}_ms": [min(times), max(times)] for name, times in cpu.items()},
            "speedup": [min(speedups), max(speedups)],
            "forward_over_floor": [min(over_floor), max(over_floor)],
        },
        "wall_ms": {name: 1000 * median(each.wall for each in times) for name, times in seconds.items()},
    }


def table(found: dict[str, Any]) -> Table:
    """The rows, for people."""
    shown = Table(
        title=f"Depth-wise attention, ms of CPU time (from the fastest to the slowest); {found['setting']['layout']}"
    )
    columns = {
        "published_ms": "published",
        "ours_ms": "ours",
        "speedup": "times faster",
        "forward_ms": "ours, forward",
        "floor_ms": "reading once",
        "forward_over_floor": "forward / reading",
    }
    for name in ("layers", *columns.values(), "saved, MB"):
        shown.add_column(name, justify="right")
    for each in found["rows"]:
        cells = []
        for key in columns:
            digits = 0 if key.endswith("_ms") and each[key] >= 100 else 1
            low, high = each["spread"][key]
            cells.append(f"{each[key]:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})")
        shown.add_row(str(each["layers"]), *cells, f"{each['saved_mb']:.1f}")
    return shown
