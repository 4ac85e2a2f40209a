"""Bandwidth of the Triton kernels of depth-wise attention, beside a copy, the published form and torch's attention.

    PYTHONPATH=. python benchmarks/gpu_attention.py > benchmarks/results/gpu_attention_HARDWARE_DATE.jsonl

Prints JSON objects, each on its line as soon as it is known: the environment, each `row`, each `tiling`.

One layer attends to L slots: the paper's widths, maps of 16x16, batch 32. Needs a GPU and nothing beyond torch and
Triton. `forward` and `forward_backward` are replays of a CUDA graph, so what the GPU takes; those of the Triton kernels
hold the kernels alone, their tables of addresses on the device already. `eager_ms` is forward and backward without a
graph, so with all copies, and with what the CPU takes to launch them. All methods of a row take turns; 1 GiB is read
before each, which leaves nothing of it, and nothing to be written, in the second-level cache. Median, fastest and
slowest. GB/s are of the least that must be moved (`bytes_moved`), whatever the
method moves, and `of_copy` sets them against a copy of 1 GiB in the same turns. `error` is the distance from float64;
where it is more than rounding, nothing more is timed. `tiling` cuts the work in another way; the first is that in use.

`--rehearse` runs the same lines on tiny maps, in Triton's interpreter where there is no GPU; its figures mean nothing.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Attention = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], Tensor]
Work = Callable[[], Any]
ERROR_ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


class Case(NamedTuple):
    layers: int
    dtype: torch.dtype
    channels: int = 256
    channels_last: bool = False
    key_channels: int = 20
    batch: int = 32
    side: int = 16


CASES = [
    *(Case(layers, dtype) for dtype in (torch.bfloat16, torch.float32) for layers in (16, 32, 64)),
    Case(16, torch.bfloat16, channels=276),  # as wide as the CIFAR-10 model's contexts
    Case(16, torch.bfloat16, channels_last=True),
]
TILED = Case(32, torch.bfloat16)
TILINGS = [
    {},
    {"row_bytes": 32},
    {"row_bytes": 128},
    {"warp_bytes": 2048},
    {"warp_bytes": 8192},
    {"stages": 2},
    {"stages": 4},
]
TINY = Case(2, torch.float32, channels=5, key_channels=3, batch=1, side=2)


def published(query_BKHW: Tensor, keys_BKHW: Sequence[Tensor], values_BCHW: Sequence[Tensor]) -> Tensor:
    """All slots stacked and permuted for this layer, as the authors' code does at every layer."""
    keys_BHWnK, values_BHWnC = (torch.stack(list(slots)).permute(1, 3, 4, 0, 2) for slots in (keys_BKHW, values_BCHW))
    weights_BHWn1 = (keys_BHWnK @ query_BKHW.permute(0, 2, 3, 1)[..., None]).softmax(dim=-2)
    return (weights_BHWn1.transpose(-1, -2) @ values_BHWnC)[..., 0, :].permute(0, 3, 1, 2)


def torch_attention(query_BKHW: Tensor, keys_BKHW: Sequence[Tensor], values_BCHW: Sequence[Tensor]) -> Tensor:
    """`scaled_dot_product_attention` over stacked slots, with a head for each pixel."""
    keys, values = (torch.stack(list(slots)).flatten(3).permute(1, 3, 0, 2) for slots in (keys_BKHW, values_BCHW))
    query = query_BKHW.flatten(2).transpose(1, 2)[:, :, None]
    out_BPC = F.scaled_dot_product_attention(query, keys, values, scale=1.0)[:, :, 0]
    return out_BPC.transpose(1, 2).unflatten(2, query_BKHW.shape[2:])


def made(case: Case, device: torch.device) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    form = torch.channels_last if case.channels_last else torch.contiguous_format

    def one(channels: int) -> Tensor:
        noise = torch.randn(case.batch, channels, case.side, case.side, device=device)
        return noise.to(case.dtype, memory_format=form).requires_grad_()

    keys = [one(case.key_channels) for _ in range(case.layers)]
    return one(case.key_channels), keys, [one(case.channels) for _ in range(case.layers)]


def error(attention: Attention, query: Tensor, keys: list[Tensor], values: list[Tensor]) -> float:
    """Of the output and of each kind of gradient, ‖ours - exact‖ / ‖exact‖ in float64: the worst."""

    def results(form: Attention, *leaves: Tensor) -> list[Tensor]:
        n = len(keys)
        out = form(leaves[0], leaves[1 : n + 1], leaves[n + 1 :])
        # The same gradient for both, and another number in every place.
        upstream = torch.linspace(-1, 1, out.numel(), device=out.device).to(query.dtype).to(out.dtype).view(out.shape)
        grad_query, *grads = torch.autograd.grad(out, leaves, upstream)
        return [out.detach(), grad_query, torch.stack(grads[:n]), torch.stack(grads[n:])]

    ours = results(attention, query, *keys, *values)
    exact = results(published, *(leaf.detach().double().requires_grad_() for leaf in (query, *keys, *values)))
    return max(((one - other).norm() / other.norm()).item() for one, other in zip(ours, exact, strict=True))


class Bench:
    """Times on one device; without a GPU by the clock, for `--rehearse`."""

    def __init__(self, device: torch.device, repeats: int, copied_bytes: int):
        self.device, self.repeats = device, repeats
        self.source = torch.empty(copied_bytes, dtype=torch.uint8, device=device).random_()
        self.target = torch.empty_like(self.source)

    def copy(self) -> None:
        self.target.copy_(self.source)

    def graph(self, work: Work) -> Work:
        """The work as a CUDA graph's replay."""
        if self.device.type == "cpu":
            return work
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay

    def ms(self, works: dict[str, Work]) -> dict[str, dict[str, float]]:
        """Median, fastest and slowest of each, in turns."""
        times: dict[str, list[float]] = {name: [] for name in works}
        for turn in range(self.repeats + 1):  # the first warms up
            for name, work in works.items():
                milliseconds = self._once(work)
                if turn:
                    times[name].append(milliseconds)
        return {
            name: {"median": statistics.median(taken), "fastest": min(taken), "slowest": max(taken)}
            for name, taken in times.items()
        }

    def _once(self, work: Work) -> float:
        self.source.view(torch.int64).sum()  # larger than the second-level cache
        if self.device.type == "cpu":
            start = time.perf_counter()
            work()
            return (time.perf_counter() - start) * 1e3
        torch.cuda.synchronize()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end)


def steps(attention: Attention, query: Tensor, keys: list[Tensor], values: list[Tensor]) -> tuple[Work, Work]:
    """Forward, and forward with backward."""
    leaves = [query, *keys, *values]
    with torch.no_grad():
        upstream = torch.randn_like(attention(query, keys, values))

    def forward() -> Tensor:
        with torch.no_grad():
            return attention(query, keys, values)

    def forward_backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(attention(query, keys, values), leaves, upstream)

    return forward, forward_backward


def launches(kernel: ModuleType, query: Tensor, keys: list[Tensor], values: list[Tensor]) -> tuple[Work, Work]:
    """Likewise of the Triton kernels, without what comes before: the operator makes a table of addresses each time."""
    query, *slots = (leaf.detach() for leaf in (query, *keys, *values))
    keys, values = slots[: len(keys)], slots[len(keys) :]
    forward, out, log_sum = kernel.prepared(query, keys, values, 1.0)
    backward, _ = kernel.prepared_backward(torch.randn_like(out), query, keys, values, log_sum, 1.0)

    def forward_backward() -> None:
        forward()
        backward()

    return forward, forward_backward


def row(bench: Bench, case: Case, kernel: ModuleType, others: dict[str, Attention]) -> dict[str, Any]:
    """Figures of the Triton kernels and of the other methods."""
    maps = made(case, bench.device)
    forward_bytes, backward_bytes = kernel.bytes_moved(*maps)
    eager = {name: steps(attention, *maps) for name, attention in {"triton": kernel.depth_attention, **others}.items()}
    graphs = {
        name: [bench.graph(work) for work in works]
        for name, works in {**eager, "triton": launches(kernel, *maps)}.items()
    }
    figures: dict[str, Any] = {name: {} for name in eager}
    for i, (part, moved) in enumerate(
        (("forward", forward_bytes), ("forward_backward", forward_bytes + backward_bytes))
    ):
        taken = bench.ms({"copy": bench.copy, **{name: works[i] for name, works in graphs.items()}})
        copied = 2 * bench.source.numel() / taken.pop("copy")["median"]
        for name, ms in taken.items():
            rate = moved / ms["median"]
            figures[name][part] = {"ms": ms, "gb_per_s": rate / 1e6, "of_copy": rate / copied}
        figures.setdefault("copy_gb_per_s", {})[part] = copied / 1e6
    for name, ms in bench.ms({name: both for name, (_, both) in eager.items()}).items():
        figures[name]["eager_ms"] = ms
    return {**described(case), "forward_bytes": forward_bytes, "backward_bytes": backward_bytes, **figures}


def described(case: Case) -> dict[str, Any]:
    return {**case._asdict(), "dtype": str(case.dtype).removeprefix("torch.")}


def rounded(value: Any) -> Any:
    match value:
        case float():
            return float(f"{value:.4g}")
        case dict():
            return {name: rounded(entry) for name, entry in value.items()}
        case list():
            return [rounded(entry) for entry in value]
    return value


def say(name: str, found: dict[str, Any]) -> None:
    """At once: the process may be ended before it has measured everything."""
    print(json.dumps({name: rounded(found)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rehearse", action="store_true", help="tiny maps, also without a GPU; the figures mean nothing"
    )
    rehearse = parser.parse_args().rehearse
    has_gpu = torch.cuda.is_available()
    if not (has_gpu or rehearse):
        raise SystemExit("gpu_attention: torch finds no GPU here; --rehearse runs the same lines without one")
    if not has_gpu:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        import triton  # after the environment is set

        from attvae.kernels.depth_attention import triton as kernel
    except ModuleNotFoundError as missing:
        raise SystemExit(
            f"gpu_attention: {missing}; it needs triton (pip install triton), and this repository: PYTHONPATH=."
        ) from None

    bench = Bench(torch.device("cuda" if has_gpu else "cpu"), *((2, 1 << 10) if rehearse else (20, 1 << 30)))
    cases, tiled, tilings = ([TINY], TINY, TILINGS[:2]) if rehearse else (CASES, TILED, TILINGS)
    environment = {
        "device": torch.cuda.get_device_name() if has_gpu else "none, in Triton's interpreter",
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rehearsal": rehearse,
    }
    say("environment", environment)
    for case in cases:
        found = error(kernel.depth_attention, *made(case, bench.device))
        if not found <= ERROR_ALLOWED[case.dtype]:
            raise SystemExit(f"gpu_attention: the kernel is wrong by {found:.2g} at {described(case)}: it is not timed")
        say("row", {**row(bench, case, kernel, {"published": published, "torch": torch_attention}), "error": found})
    for change in tilings:
        kernel.tiling = kernel.Tiling(**change)
        say("tiling", {**described(tiled), **kernel.tiling._asdict(), **row(bench, tiled, kernel, {})["triton"]})


if __name__ == "__main__":
    main()
