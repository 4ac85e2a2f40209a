"""A training step of the paper's CIFAR-10 model, in bf16 on one GPU: needs torch and no other package.

    PYTHONPATH=. python3 benchmarks/gpu_step.py eager|compiled|optimizers [--batch B ...]

benchmarks/gpu.sh runs all parts, each with a limit of time, and merges what they print: JSON objects, each on its line
as soon as it is known, the environment, each `row`, each `attention`.

The model computes in bf16 (torch.autocast), its parameters are fp32; a step is the forward and the backward pass, the
norm of the gradients and the update with its average of the weights, on random images. Each step is waited for; the
first few, which fill caches and choose algorithms, do not count. `mfu` is the rate of the model FLOPs
(attvae/model/flops.py) over the matrix rate measured here. `attention` is all depth-wise attention of such a step,
forward and backward, by itself.
"""

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from attvae.kernels.depth_attention.choose import choose as choose_attention
from attvae.model.config import ModelConfig
from attvae.model.depth_attention import Slot
from attvae.model.flops import training_flops
from attvae.model.residual_cell import ResidualCell
from attvae.model.vae import DeepVAE
from attvae.objective import training_loss
from attvae.optim.choose import choose as choose_optimizer
from attvae.optim.config import OptimConfig
from attvae.optim.ema import EmaOptimizer
from attvae.spec import DataSpec

# configs/paper/cifar10_attvae16.yaml, which needs a YAML reader; tests/test_gpu_benchmark.py compares the two.
SPEC = {"height": 32, "width": 32, "channels": 3, "num_bits": 8, "max_value": 255}
CELLS = {"scales": [0, 0], "non_local": {"key_dim": 32}}
ATTENTION = {"key_dim": 20, "layer_norm": True}
MODEL = {
    "num_layers": 16,
    "latent_channels": 20,
    "encoder_filters": 128,
    "decoder_filters": 128,
    "preprocessing": {"scales": [0, -2], "non_local": {"key_dim": 32}},
    "encoder": CELLS,
    "decoder": CELLS,
    "postprocessing": {"scales": [2, 0]},
    "encoder_attention": ATTENTION,
    "decoder_attention": ATTENTION,
    "norm": "batch",
    "posterior": {"low": -5.0, "high": 5.0, "noise_stddev": 0.001},
    "prior": {"low": -1.0, "high": 5.0, "noise_stddev": 0.001},
    "soft_clamp": "published",
    "likelihood": {"kind": "logistic_mixture", "num_mixtures": 5, "edges": "published"},
}
PUBLISHED_BATCH = 40
"""Images of each of the authors' GPUs."""

TINY = {"num_layers": 2, "encoder_filters": 8, "decoder_filters": 8}
TINY_BATCH, TINY_LIMIT = 1, 2

WARMUP_STEPS, STEPS = 4, 10
LARGEST_TRIED = 4096

NO_ROOM = ("out of memory", "ALLOC_FAILED", "NOT_INITIALIZED", "unable to find an engine")
"""In what torch, cuBLAS and cuDNN say where the memory does not suffice."""


class Bench:
    """The model on its device, and what is measured of it."""

    def __init__(self, device: torch.device, *, rehearse: bool) -> None:
        self.device = device
        self.rehearse = rehearse
        self.config = ModelConfig(**(MODEL | TINY if rehearse else MODEL))
        self.spec = DataSpec(**SPEC)
        torch.manual_seed(0)
        self.model = DeepVAE(self.config, self.spec).to(device).train()
        self.flops = training_flops(self.config, self.spec, device)
        self.use(OptimConfig(name="adamax"))

    def use(self, config: OptimConfig) -> str:
        """Takes another optimizer; says which one it is."""
        self.optimizer: EmaOptimizer
        self.optimizer, which = choose_optimizer(self.model.parameters(), config, self.device)
        self.optimizer.set_lr(1e-5)
        self.optimizer.create_state()
        return which

    def step(self, batch: int) -> Callable[[], None]:
        """One update on so many images."""
        x = torch.randint(256, (batch, *self.spec.shape), device=self.device).to(torch.uint8)
        noise = [torch.randn(batch, *shape, device=self.device) for shape in self.model.latent_shapes]

        def step() -> None:
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, torch.bfloat16):
                elbo = self.model(x, noise)
                loss = training_loss(elbo.nll_nats, elbo.kl_nats, 1.0)
            loss.backward()
            norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
            self.optimizer.clip(float(norm), 1000.0)
            self.optimizer.step()

        return step

    def largest_batch(self) -> int:
        """That fits: the published one doubled as often as it goes, then half as much again if it goes."""
        largest = TINY_BATCH if self.rehearse else PUBLISHED_BATCH
        limit = TINY_LIMIT if self.rehearse else LARGEST_TRIED
        while 2 * largest <= limit and self._fits(2 * largest):
            largest *= 2
        return largest * 3 // 2 if 1.5 * largest <= limit and self._fits(largest * 3 // 2) else largest

    def _fits(self, batch: int) -> bool:
        try:
            step = self.step(batch)
            step()
            step()
            return True
        except RuntimeError as error:
            if no_room(error):
                return False
            raise
        finally:
            step = None  # type: ignore[assignment]
            self.clear()

    def clear(self) -> None:
        """Gives the memory back that steps have left."""
        self.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def measured(
        self, steps: Mapping[str, Callable[[], None]], batch: int, matrix_tflops: float
    ) -> dict[str, dict[str, Any]]:
        """For each kind of step, on so many images, a row; they take turns."""
        warmup, repeats = (1, 2) if self.rehearse else (WARMUP_STEPS, STEPS)
        taken: dict[str, list[float]] = {name: [] for name in steps}
        peaks: dict[str, float] = dict.fromkeys(steps, 0.0)
        for _ in range(warmup + repeats):
            for name, step in steps.items():
                if self.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                taken[name].append(self.timed(step))
                if self.device.type == "cuda":
                    peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated() / 1e9)

        def row(name: str) -> dict[str, Any]:
            seconds = taken[name][warmup:]
            tflops = self.flops * batch / median(seconds) / 1e12
            return {
                "step_ms": spread([1000 * s for s in seconds]),
                "first_step_s": taken[name][0],
                "images_per_s": batch / median(seconds),
                "peak_memory_gb": peaks[name] or None,
                "tflops": tflops,
                "mfu": tflops / matrix_tflops,
            }

        return {name: row(name) for name in steps}

    def attention(self, batch: int) -> dict[str, Any]:
        """Depth-wise attention alone, forward and backward: the shapes and places of all layers' maps in both paths."""
        config, count = self.config, self.config.num_layers + 1
        _, height, width = self.model.latent_shapes[0]

        def made(channels: int) -> Tensor:
            noise = torch.randn(batch, channels, height, width, device=self.device).to(torch.bfloat16)
            return noise.contiguous(memory_format=torch.channels_last).requires_grad_()

        contexts = [made(config.context_width + config.decoder_key_dim) for _ in range(count)]
        features = [made(config.encoder_width + config.encoder_key_dim) for _ in range(count)]
        cell = made(
            config.context_width + 2 * config.decoder_key_dim
        )  # context, whose first channels are a query, too; key; query
        newest = made(config.context_width)  # its value is normalised for the layer just below
        which = ""

        def run() -> None:
            generative = [Slot.cut(whole, config.context_width) for whole in contexts]
            inference = [Slot.cut(whole, config.encoder_width) for whole in features]
            outputs = []

            def attend(query: Tensor, slots: Sequence[Slot], values: list[Tensor]) -> None:
                nonlocal which
                keys = [slot.key for slot in slots]
                implementation, which = choose_attention("auto", query, keys, values)
                outputs.append(implementation(query, keys, values))

            for n in range(1, config.num_layers):
                values = [*(slot.value for slot in generative[: n - 1]), newest]
                attend(cell[:, -config.decoder_key_dim :], generative[:n], values)
            for n in range(2, count + 1):
                attend(cell[:, : config.encoder_key_dim], inference[:n], [slot.value for slot in inference[:n]])
            torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
            for whole in (*contexts, *features, cell, newest):
                whole.grad = None

        seconds = self.seconds(run, 2, 5)
        return {"implementation": which, "ms": spread([1000 * s for s in seconds])}

    def timed(self, work: Callable[[], Any]) -> float:
        """Seconds until the device has done it."""
        begun = time.perf_counter()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    def seconds(self, work: Callable[[], Any], warmup: int, repeats: int) -> list[float]:
        if self.rehearse:
            warmup, repeats = 0, 2
        return [self.timed(work) for _ in range(warmup + repeats)][warmup:]


def no_room(error: RuntimeError) -> bool:
    return any(sign in str(error) for sign in NO_ROOM)


def attainable(bench: Bench) -> dict[str, float]:
    """The fastest of several bf16 products of square matrices, and of several copies, bytes read and written."""
    size, elements = (256, 2**20) if bench.rehearse else (8192, 2**29)
    a, b = torch.randn(2, size, size, device=bench.device).to(torch.bfloat16)
    source = torch.zeros(elements, dtype=torch.bfloat16, device=bench.device)
    target = torch.empty_like(source)
    product = min(bench.seconds(lambda: torch.mm(a, b), 3, 10))
    copy = min(bench.seconds(lambda: target.copy_(source), 3, 10))
    return {"matrix_tflops": 2 * size**3 / product / 1e12, "copy_gb_per_s": 2 * source.nbytes / copy / 1e9}


Entries = Iterator[tuple[str, dict[str, Any]]]
"""What a part finds, each with what it is."""


def eager(bench: Bench, batches: Sequence[int], rates: dict[str, float]) -> Entries:
    """The published batch, and then the largest."""

    def entries(batch: int) -> Entries:
        found = bench.measured({"step": bench.step(batch)}, batch, rates["matrix_tflops"])["step"]
        yield "row", {"batch": batch, **found}
        bench.clear()  # the largest batch leaves little for what follows
        yield "attention", {"batch": batch, **_attention(bench, batch, found["step_ms"]["median"])}

    published = TINY_BATCH if bench.rehearse else PUBLISHED_BATCH
    for batch in batches or [published]:
        yield from entries(batch)
    if not batches and (largest := bench.largest_batch()) > published:
        yield from entries(largest)


def _attention(bench: Bench, batch: int, step_ms: float) -> dict[str, Any]:
    try:
        found = bench.attention(batch)
    except RuntimeError as error:
        if not no_room(error):
            raise
        return {"not_measured": str(error)}
    return {**found, "share_of_step": found["ms"]["median"] / step_ms}


def compiled(bench: Bench, batches: Sequence[int], rates: dict[str, float]) -> Entries:
    """Eager, and with the residual cells by torch.compile; what it took to compile is in `first_step_s`."""
    backend = "aot_eager" if bench.rehearse else "inductor"
    for batch in batches or [TINY_BATCH if bench.rehearse else PUBLISHED_BATCH]:
        torch.compiler.reset()
        compile_cells(bench.model, backend)
        step = bench.step(batch)

        def eager_step(step: Callable[[], None] = step) -> None:
            with torch.compiler.set_stance("force_eager"):
                step()

        found = bench.measured({"eager": eager_step, "compiled": step}, batch, rates["matrix_tflops"])
        speedup = found["eager"]["step_ms"]["median"] / found["compiled"]["step_ms"]["median"]
        yield "row", {"batch": batch, "backend": backend, **found, "speedup": speedup}


def compile_cells(model: DeepVAE, backend: str | Callable[..., Any]) -> None:
    """Cells of one shape share what is compiled: 7 graphs for the paper's 66; the whole model takes minutes."""
    for module in model.modules():
        if isinstance(module, ResidualCell):
            module.compile(backend=backend, dynamic=False, fullgraph=True)


def optimizers(bench: Bench, batches: Sequence[int], rates: dict[str, float]) -> Entries:
    """An update alone, average of the weights included: Adamax, and AdamW with and without apex."""
    bench.step(TINY_BATCH)()  # gradients
    parameters = sum(p.numel() for p in bench.model.parameters())
    for name, fused in (("adamax", "auto"), ("adamw", "none"), ("adamw", "torch"), ("adamw", "apex")):
        row: dict[str, Any] = {"optimizer": name, "fused": fused, "parameters": parameters}
        try:
            row["which"] = bench.use(OptimConfig(name=name, fused=fused, eps=1e-3 if name == "adamax" else 1e-8))
        except ValueError as error:
            row["not_measured"] = str(error)
        else:
            row["update_ms"] = spread([1000 * s for s in bench.seconds(bench.optimizer.step, 3, 15)])
        yield "row", row


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def environment(device: torch.device) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine(),
        "memory_gb": torch.cuda.get_device_properties(device).total_memory / 1e9 if on_gpu else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def main() -> None:
    parts = {"eager": eager, "compiled": compiled, "optimizers": optimizers}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--batch", type=int, action="append", help="repeatable; by default the published one")
    parser.add_argument("--rehearse", action="store_true", help="a tiny model on the CPU; the figures mean nothing")
    asked = parser.parse_args()
    if not asked.rehearse and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} finds no GPU here: --rehearse runs the same lines without one")
    bench = Bench(torch.device("cpu" if asked.rehearse else "cuda"), rehearse=asked.rehearse)
    rates = attainable(bench)
    print(json.dumps({"environment": environment(bench.device), **rates}), flush=True)
    for name, entry in parts[asked.part](bench, asked.batch or [], rates):
        print(json.dumps({name: entry}), flush=True)  # at once: the process may be ended before the next


if __name__ == "__main__":
    main()
