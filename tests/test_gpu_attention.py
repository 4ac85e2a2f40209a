"""benchmarks/gpu_attention.py, rehearsed without a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks/gpu_attention.py"
BARE = """
import runpy, sys
for missing in ("pydantic", "jaxtyping", "deepspeed", "typer", "yaml"):
    sys.modules[missing] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


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


def test_without_a_gpu() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    failed = ran()
    assert failed.returncode == 1
    assert failed.stderr == "gpu_attention: torch finds no GPU here; --rehearse runs the same lines without one\n"
