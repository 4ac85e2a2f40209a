"""x + gelu(layer_norm(x)) on the CPU in C: layer_norm_gelu.c, compiled at the start.

Both passes read x once; only x is kept between them. Legend: B batch, C channels, H and W the map, N pixels of all.
"""

from ctypes import CDLL, Structure, c_float, c_int, c_longlong, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from attvae.compiled_c import can_take, compiled, threads_for


class _Rows(Structure):
    _fields_ = (("at", c_void_p), ("apart", c_longlong))


class _Shape(Structure):
    _fields_ = (("rows", c_longlong), ("channels", c_longlong))


@cache
def library() -> CDLL | str:
    """The functions of layer_norm_gelu.c, or why there are none. Compiles them, once in a process."""
    found = compiled(Path(__file__).with_name("layer_norm_gelu.c"))
    if isinstance(found, CDLL):
        parameters = [c_void_p, c_void_p]
        found.forward.argtypes = [_Rows, _Rows, *parameters, _Shape, c_float, c_int]
        found.backward.argtypes = [_Rows, *parameters, c_void_p, _Rows, *found.forward.argtypes[1:]]
        found.backward_room.argtypes = [_Shape]
        found.backward_room.restype = c_longlong
        found.forward.restype = found.backward.restype = None
    return found


def runs_on(x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor) -> bool:
    fits = x_BCHW.dim() == 4 and weight_C.shape == bias_C.shape == x_BCHW.shape[1:2]
    return fits and can_take(x_BCHW, weight_C, bias_C) and isinstance(library(), CDLL)


def layer_norm_gelu(
    x_BCHW: Float[Tensor, "b c h w"], weight_C: Float[Tensor, " c"], bias_C: Float[Tensor, " c"], eps: float
) -> Float[Tensor, "b c h w"]:
    """x + gelu(layer_norm(x)) over the channels of each pixel, where it `runs_on` them; channels-last.

    GELU is its tanh approximation. Maps that are not channels-last are copied. The same bits with any number of
    threads. Second derivatives are an error.
    """
    out_BCHW: Tensor = _LayerNormGelu.apply(x_BCHW, weight_C, bias_C, eps)  # type: ignore[no-untyped-call]
    return out_BCHW


class _LayerNormGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
        x_NC, weight_C, bias_C = _rows(x_BCHW), weight_C.contiguous(), bias_C.contiguous()
        out_BCHW = torch.empty_like(x_BCHW, memory_format=torch.channels_last)
        parameters = weight_C.data_ptr(), bias_C.data_ptr()
        shape, threads = _Shape(*x_NC.shape), threads_for(x_NC.numel())
        _functions().forward(_address(_rows(out_BCHW)), _address(x_NC), *parameters, shape, eps, threads)
        ctx.save_for_backward(x_NC, weight_C, bias_C)
        ctx.eps = eps
        return out_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x_NC, weight_C, bias_C = ctx.saved_tensors
        grad_NC = _rows(grad_BCHW)
        grad_x_BCHW = torch.empty_like(grad_BCHW, memory_format=torch.channels_last)
        grad_weight_C, grad_bias_C = torch.empty_like(weight_C), torch.empty_like(bias_C)
        shape, functions = _Shape(*x_NC.shape), _functions()
        memory = x_NC.new_empty(functions.backward_room(shape))
        functions.backward(
            _address(_rows(grad_x_BCHW)),
            grad_weight_C.data_ptr(),
            grad_bias_C.data_ptr(),
            memory.data_ptr(),
            _address(grad_NC),
            _address(x_NC),
            weight_C.data_ptr(),
            bias_C.data_ptr(),
            shape,
            ctx.eps,
            threads_for(x_NC.numel()),
        )
        return grad_x_BCHW, grad_weight_C, grad_bias_C, None


def _rows(map_BCHW: Tensor) -> Float[Tensor, "n c"]:
    """The map itself if the channels are side by side and the pixels at equal distances, else a copy."""
    rows_NC = map_BCHW.permute(0, 2, 3, 1).flatten(0, 2)
    return rows_NC if rows_NC.stride(1) == 1 else rows_NC.contiguous()


def _address(rows_NC: Tensor) -> _Rows:
    return _Rows(rows_NC.data_ptr(), rows_NC.stride(0))


def _functions() -> CDLL:
    found = library()
    assert isinstance(found, CDLL), found
    return found
