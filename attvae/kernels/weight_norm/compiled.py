"""Weight-normalised kernels on the CPU in C: weight_norm.c, compiled at the start. Legend: O output channels."""

from ctypes import CDLL, Structure, c_float, c_int, c_longlong, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from attvae.compiled_c import can_take, compiled, threads_for
from attvae.kernels.weight_norm.by_torch import MIN_NORM


class _Shape(Structure):
    _fields_ = (("outputs", c_longlong), ("inputs", c_longlong), ("points", c_longlong))


@cache
def library() -> CDLL | str:
    """The functions of weight_norm.c, or why there are none. Compiles them, once in a process."""
    found = compiled(Path(__file__).with_name("weight_norm.c"))
    if isinstance(found, CDLL):
        found.kernel.argtypes = [*[c_void_p] * 5, _Shape, c_float, c_int]
        found.gradients.argtypes = [c_void_p, *found.kernel.argtypes]
        found.kernel.restype = found.gradients.restype = None
    return found


def runs_on(v: Tensor, log_g: Tensor) -> bool:
    fits = v.dim() == 4 and log_g.shape == v.shape[:1]
    return fits and can_take(v, log_g) and isinstance(library(), CDLL)


def weight_norm(v: Float[Tensor, "o i kh kw"], log_g: Float[Tensor, " o"]) -> Float[Tensor, "o i kh kw"]:
    """As `by_torch.weight_norm`, where it `runs_on` them; the same bits with any number of threads."""
    kernel: Tensor = _WeightNorm.apply(v, log_g)  # type: ignore[no-untyped-call]
    return kernel


class _WeightNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, log_g: Tensor) -> Tensor:
        v, log_g = v.contiguous(), log_g.contiguous()
        kernel = torch.empty_like(v, memory_format=torch.channels_last)
        norm_O, factor_O = torch.empty_like(log_g), torch.empty_like(log_g)
        _call("kernel", v, kernel, norm_O, factor_O, v, log_g)
        ctx.save_for_backward(v, norm_O, factor_O)
        return kernel

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        v, norm_O, factor_O = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        grad_v, grad_log_g = torch.empty_like(v), torch.empty_like(norm_O)
        _call("gradients", v, grad_v, grad_log_g, gradient, v, norm_O, factor_O)
        return grad_v, grad_log_g


def _call(name: str, v: Tensor, *tensors: Tensor) -> None:
    outputs, inputs, height, width = v.shape
    function = getattr(library(), name)
    shape = _Shape(outputs, inputs, height * width)
    function(*(tensor.data_ptr() for tensor in tensors), shape, MIN_NORM, threads_for(v.numel()))
