"""benchmarks/gpu_attention.py, rehearsed without a GPU."""

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks/gpu_attention.py"
BARE = """
import runpy, sys
for missing in ("pydantic", "jaxtyping", "deepspeed", "typer", "yaml"):
    sys.modules[missing] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_attention", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BARE, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=SCRIPT.parents[1], capture_output=True, text=True, timeout=200)


@pytest.mark.triton
def test_rehearsal_needs_torch_and_triton_only() -> None:
    first, second, *others = map(json.loads, ran("--rehearse").stdout.splitlines())
    assert first["environment"]["rehearsal"]
    row = second["row"]
    for method in ("triton", "published", "torch"):
        for part in ("forward", "forward_backward"):
            figures = row[method][part]
            copy = row["copy_gb_per_s"][part]
            assert figures["of_copy"] == pytest.approx(figures["gb_per_s"] / copy, rel=0.01)
            moved = row["forward_bytes"] + (part == "forward_backward") * row["backward_bytes"]
            assert figures["gb_per_s"] == pytest.approx(moved / figures["ms"]["median"] / 1e6, rel=0.01)
    assert 0 < row["error"] < 1e-6
    assert [other["tiling"]["row_bytes"] for other in others] == [64, 32]


@pytest.mark.triton
def test_the_kernels_that_are_timed_find_their_tables_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, script = importlib.import_module("attvae.kernels.depth_attention.triton"), loaded()
    maps = script.made(script.TINY, torch.device("cpu"))
    forward, forward_backward = script.launches(kernel, *maps)

    def fails(*_: object) -> None:
        raise AssertionError("a table is made")

    monkeypatch.setattr(kernel._Slots, "table", fails)
    forward()
    forward_backward()


@pytest.mark.triton
def test_prepared_kernels_give_what_the_formula_gives() -> None:
    """Also when they are launched once more, after the inputs have changed."""
    kernel, script = importlib.import_module("attvae.kernels.depth_attention.triton"), loaded()
    query, keys, values = script.made(script.TINY, torch.device("cpu"))
    with torch.no_grad():
        launch, out, log_sum = kernel.prepared(query, keys, values, 1.0)
        upstream = torch.randn_like(out)
        launch_backward, grads = kernel.prepared_backward(upstream, query, keys, values, log_sum, 1.0)
    for _ in range(2):
        with torch.no_grad():
            for leaf in (query, *keys, *values):
                leaf.normal_()
            launch()
            launch_backward()
        exact = script.published(query, keys, values)
        torch.testing.assert_close(out, exact)
        torch.testing.assert_close(grads, [*torch.autograd.grad(exact, [query, *keys, *values], upstream)])


def test_the_cache_is_emptied_by_reading() -> None:
    """What is written would lie there, and be written back while a kernel is timed."""
    bench = loaded().Bench(torch.device("cpu"), 1, 1 << 10)
    bench.target.fill_(7)
    before = bench.source.clone()
    bench._once(lambda: None)
    assert (bench.target == 7).all()
    assert torch.equal(bench.source, before)


def test_without_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    failed = ran()
    assert failed.returncode == 1
    assert failed.stderr == "gpu_attention: torch finds no GPU here; --rehearse runs the same lines without one\n"
