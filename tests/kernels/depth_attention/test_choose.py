"""Which implementation runs. The kernel itself stands aside: a stand-in says what it can."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from attvae.kernels import depth_attention as package
from attvae.kernels.depth_attention import choose as chooser
from attvae.kernels.depth_attention import compiled, streaming, weighted_maps
from attvae.kernels.depth_attention.choose import Implementation, choose

MAPS = torch.zeros(1, 2, 3, 3)


class OnAGpu:
    """What `choose` itself looks at."""

    is_cuda = True
    device = torch.device("cuda")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """As if Triton were there, with a kernel for up to four slots."""
    stand_in: Any = ModuleType("attvae.kernels.depth_attention.triton")

    def unsupported(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]) -> str | None:
        return None if len(keys) <= 4 else f"it takes up to 4 slots, got {len(keys)}"

    stand_in.unsupported = unsupported
    stand_in.failure = lambda query: None
    stand_in.depth_attention = object()
    monkeypatch.setattr(chooser, "_found", None)
    monkeypatch.setattr(chooser, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.setattr(package, "triton", stand_in, raising=False)
    return stand_in


@pytest.mark.parametrize("asked", ["auto", "compiled"])
def test_on_the_cpu_it_is_the_kernel_in_c_and_imports_no_triton(
    asked: Implementation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weighted_maps, "why_not", lambda: None)
    chosen, why = choose(asked, MAPS, [MAPS], [MAPS])
    assert chosen is compiled.depth_attention
    assert "kernel in C" in why
    assert "attvae.kernels.depth_attention.triton" not in sys.modules


@pytest.mark.parametrize(
    ("compiler", "dtype", "reason"),
    [
        ("there is no C compiler cc", torch.float32, "there is no C compiler cc"),
        (None, torch.bfloat16, "it takes float32, query 0 is bfloat16"),
    ],
)
def test_where_the_kernel_in_c_cannot_run(
    compiler: str | None, dtype: torch.dtype, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weighted_maps, "why_not", lambda: compiler)
    maps = MAPS.to(dtype)
    assert choose("auto", maps, [maps], [maps]) == (
        streaming.depth_attention,
        f"torch's operations, since the kernel in C cannot run: {reason}",
    )
    with pytest.raises(ValueError, match=f"engine.depth_attention=compiled, .*cannot run: {reason}; use .*=auto"):
        choose("compiled", maps, [maps], [maps])


def test_auto_is_the_kernel_where_it_can_run(kernel: Any) -> None:
    on_gpu: Any = OnAGpu()
    assert choose("auto", on_gpu, [on_gpu], [on_gpu]) == (kernel.depth_attention, "the Triton kernel")
    chosen, why = choose("auto", on_gpu, [on_gpu] * 5, [on_gpu] * 5)
    assert chosen is streaming.depth_attention
    assert "up to 4 slots, got 5" in why


def test_a_kernel_that_failed_its_trial_is_not_used(kernel: Any) -> None:
    kernel.failure = lambda query: "a trial failed: RuntimeError: no C compiler"
    on_gpu: Any = OnAGpu()
    assert choose("auto", on_gpu, [on_gpu], [on_gpu]) == (
        streaming.depth_attention,
        "torch's operations, since the Triton kernel cannot run: a trial failed: RuntimeError: no C compiler",
    )
    with pytest.raises(ValueError, match=r"engine\.depth_attention=triton.*a trial failed.*no C compiler; use .*auto"):
        choose("triton", MAPS, [MAPS], [MAPS])


def test_torch_is_torch_everywhere(kernel: Any) -> None:
    on_gpu: Any = OnAGpu()
    assert choose("torch", on_gpu, [on_gpu], [on_gpu])[0] is streaming.depth_attention


def test_what_is_asked_for_runs_or_fails_with_the_reason(kernel: Any) -> None:
    assert choose("triton", MAPS, [MAPS], [MAPS])[0] is kernel.depth_attention
    with pytest.raises(ValueError, match=r"engine\.depth_attention=triton.*up to 4 slots, got 5.*auto"):
        choose("triton", MAPS, [MAPS] * 5, [MAPS] * 5)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chooser, "_found", None)
    monkeypatch.setattr(chooser, "find_spec", lambda name: None)
    on_gpu: Any = OnAGpu()
    chosen, why = choose("auto", on_gpu, [on_gpu], [on_gpu])
    assert chosen is streaming.depth_attention
    assert "Triton is not installed" in why
    with pytest.raises(ValueError, match="Triton is not installed"):
        choose("triton", MAPS, [MAPS], [MAPS])


def test_with_a_triton_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text('raise ImportError("libcuda.so.1: no such file")')
    for name in ("triton", "attvae.kernels.depth_attention.triton"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr(package, "triton", raising=False)
    monkeypatch.setattr(chooser, "_found", None)
    monkeypatch.syspath_prepend(tmp_path)
    on_gpu: Any = OnAGpu()
    chosen, why = choose("auto", on_gpu, [on_gpu], [on_gpu])
    assert chosen is streaming.depth_attention
    assert "Triton cannot be imported: ImportError: libcuda.so.1" in why
    with pytest.raises(ValueError, match=r"Triton cannot be imported: ImportError: libcuda\.so\.1"):
        choose("triton", MAPS, [MAPS], [MAPS])
