"""Adamax in one pass over the memory: adamax.c, which the machine's own C compiler turns into code at the start."""

from array import array
from collections.abc import Callable, Iterable
from ctypes import c_float, c_int, c_longlong, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attvae.compiled_c import compiled, threads_for
from attvae.optim.adamax import Adamax
from attvae.optim.config import OptimConfig

_Coefficients = c_float * 7


@cache
def _compiled() -> Callable[..., None] | str:
    """The function of adamax.c, or why there is none."""
    library = compiled(Path(__file__).with_name("adamax.c"))
    if isinstance(library, str):
        return library
    function = library.adamax
    function.argtypes = [c_void_p, c_longlong, c_int, _Coefficients]
    function.restype = None
    return function


def why_not() -> str | None:
    """Why the compiled update cannot be used here; None if it can be. Compiles it, once in a process."""
    return found if isinstance(found := _compiled(), str) else None


class CompiledAdamax(Adamax):
    """The same update with clipping and average, on the CPU; bit for bit the same with any compiler and any threads.

    Raises:
        ValueError: there is no C compiler, or it fails.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], config: OptimConfig) -> None:
        if (reason := why_not()) is not None:
            raise ValueError(
                f"optim.fused=compiled: {reason}: install gcc, name a compiler in CC, or use optim.fused=auto"
            )
        super().__init__(params, config)

    def _apply(self, params: list[Tensor], group: dict[str, Any], t: int, average_rate: float) -> None:
        table, elements, others = array("q"), 0, []
        written: list[Tensor] = []
        for p in params:
            assert p.grad is not None
            states = [self.state[p][name] for name in self.states]
            if _side_by_side((p, p.grad, *states)):
                table.extend((p.numel(), *(x.data_ptr() for x in (p, p.grad, *states))))
                elements += p.numel()
                written += (p, *states)
            else:
                others.append(p)
        if others:
            super()._apply(others, group, t, average_rate)
        coefficients = _Coefficients(
            self._clip_factor,
            2 * group["l2"],
            1 - group["beta1"],
            group["beta2"],
            group["eps"],
            group["lr"] / (1 - group["beta1"] ** t),
            average_rate,
        )
        update = _compiled()
        assert not isinstance(update, str)
        update(table.buffer_info()[0], len(params) - len(others), threads_for(elements), coefficients)
        torch.autograd.graph.increment_version(written)  # a graph that has kept one of them must not use it now


def _side_by_side(tensors: tuple[Tensor, ...]) -> bool:
    """Whether elements of the same index lie at the same place, without gaps, in float32."""
    return all(x.dtype == torch.float32 for x in tensors) and any(
        all(x.is_contiguous(memory_format=order) for x in tensors)
        for order in (torch.contiguous_format, torch.channels_last)
    )
