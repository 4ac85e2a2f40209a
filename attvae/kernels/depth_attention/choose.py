"""Which implementation of depth-wise attention runs: the kernel of the device where it can, else torch's operations."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from types import ModuleType
from typing import Literal

from torch import Tensor

from attvae.kernels.depth_attention import compiled, streaming

Implementation = Literal["auto", "torch", "triton", "compiled"]

DepthAttention = Callable[..., Tensor]
"""With the arguments of `reference.depth_attention`."""

_found: ModuleType | str | None = None


def choose(
    asked: Implementation, query_BKHW: Tensor, keys_BKHW: Sequence[Tensor], values_BCHW: Sequence[Tensor]
) -> tuple[DepthAttention, str]:
    """The implementation for tensors of this kind, and in a line which one it is and why.

    Raises:
        ValueError: a kernel is asked for, but cannot run on these tensors.
    """
    if asked == "torch":
        return streaming.depth_attention, "torch's operations, since engine.depth_attention=torch"
    tensors = (query_BKHW, keys_BKHW, values_BCHW)
    in_c = asked == "compiled" or (asked == "auto" and query_BKHW.device.type == "cpu")
    why_not = compiled.unsupported(*tensors) if in_c else _why_not_triton(*tensors, on_cpu=asked == "triton")
    if why_not is None:
        if in_c:
            return compiled.depth_attention, "the kernel in C, compiled on this host"
        return _triton().depth_attention, "the Triton kernel"  # type: ignore[union-attr]
    if asked == "auto":
        kernel = "kernel in C" if in_c else "Triton kernel"
        return streaming.depth_attention, f"torch's operations, since the {kernel} cannot run: {why_not}"
    raise ValueError(
        f"engine.depth_attention={asked}, but the kernel cannot run: {why_not}; use engine.depth_attention=auto"
    )


def _why_not_triton(
    query_BKHW: Tensor, keys_BKHW: Sequence[Tensor], values_BCHW: Sequence[Tensor], *, on_cpu: bool
) -> str | None:
    """Triton's interpreter runs it on a CPU, for tests: not unless it is asked for."""
    if not (query_BKHW.is_cuda or on_cpu):
        return f"it needs a GPU, the tensors are on the {query_BKHW.device.type}"
    triton = _triton()
    if isinstance(triton, str):
        return triton
    why: str | None = triton.unsupported(query_BKHW, keys_BKHW, values_BCHW) or triton.failure(query_BKHW)
    return why


def _triton() -> ModuleType | str:
    """The kernel's module, which not every machine can have; else why not. Looked for once, then a constant."""
    global _found
    if _found is None:
        if find_spec("triton") is None:
            _found = "Triton is not installed"
        else:
            try:
                from attvae.kernels.depth_attention import triton
            except Exception as error:  # no driver, or a version that has other names
                _found = f"Triton cannot be imported: {type(error).__name__}: {error}"
            else:
                _found = triton
    return _found
