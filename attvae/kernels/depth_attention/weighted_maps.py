"""Products, their softmax and weighted sums of many float32 maps on the CPU: weighted_maps.c, compiled at the start.

Each map is read once, where it lies: slices, maps that are the same for all samples, channels last or not. What lies in
another order is copied. The same bits with any number of threads, unlike torch's softmax over the first dimension.
Legend: B batch, C channels, H and W the map, n maps.
"""

from array import array
from collections.abc import Callable, Sequence
from ctypes import CDLL, Structure, c_float, c_int, c_longlong, c_void_p
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from attvae.compiled_c import compiled, threads_for


class _Shape(Structure):
    _fields_ = (("samples", c_longlong), ("rows", c_longlong), ("width", c_longlong), ("channels_last", c_longlong))


@cache
def _library() -> CDLL | str:
    library = compiled(Path(__file__).with_name("weighted_maps.c"))
    if isinstance(library, CDLL):
        for function in (library.weighted_sum, library.products):
            function.argtypes = [c_void_p, c_void_p, c_longlong, _Shape, c_int]
        library.softmax.argtypes = [c_void_p, c_longlong, c_longlong, c_float, c_int]
        library.softmax_gradient.argtypes = [c_void_p, *library.softmax.argtypes]
        for function in (library.weighted_sum, library.products, library.softmax, library.softmax_gradient):
            function.restype = None
    return library


def why_not() -> str | None:
    """Why they cannot be used here; None if they can be. Compiles them, once in a process."""
    return found if isinstance(found := _library(), str) else None


def weighted_sum(
    out_BCHW: Float[Tensor, "b c h w"],
    weights_BHW: Sequence[Float[Tensor, "b h w"]],
    maps_BCHW: Sequence[Float[Tensor, "b c h w"]],
) -> None:
    """Sets `out_BCHW`, which is in order, to the sum of the maps, each times its weights, which are contiguous."""
    channels_last = is_channels_last(out_BCHW)
    assert _strides(out_BCHW, channels_last) is not None, out_BCHW.stride()
    _call(_loaded().weighted_sum, out_BCHW, [each.data_ptr() for each in weights_BHW], maps_BCHW, channels_last)


def products(one_BCHW: Float[Tensor, "b c h w"], maps_BCHW: Sequence[Float[Tensor, "b c h w"]]) -> Tensor:
    """The sums over the channels of `one_BCHW` times each of the maps: [n, B, H, W]."""
    b, _, h, w = one_BCHW.shape
    n = len(maps_BCHW)
    found_nBHW = one_BCHW.new_empty(n, b, h, w)
    first, size = found_nBHW.data_ptr(), b * h * w * found_nBHW.element_size()
    _call(
        _loaded().products, one_BCHW, range(first, first + n * size, size), maps_BCHW, is_channels_last(maps_BCHW[-1])
    )
    return found_nBHW


def softmax_(scores_nBHW: Float[Tensor, "n b h w"], scale: float) -> None:
    """Scores, contiguous, become the softmax over the maps n of scale times scores."""
    n, total = len(scores_nBHW), scores_nBHW.numel()
    _loaded().softmax(scores_nBHW.data_ptr(), n, total // n, scale, threads_for(total))


def softmax_gradient_(grads_nBHW: Float[Tensor, "n b h w"], p_nBHW: Float[Tensor, "n b h w"], scale: float) -> None:
    """Gradients of what `softmax_` gave, p, become those of the scores that it was given; both contiguous."""
    n, total = len(p_nBHW), p_nBHW.numel()
    _loaded().softmax_gradient(grads_nBHW.data_ptr(), p_nBHW.data_ptr(), n, total // n, scale, threads_for(total))


def is_channels_last(map_BCHW: Tensor) -> bool:
    _, channel, _, column = map_BCHW.stride()
    return channel == 1 and column != 1


def in_order(map_BCHW: Tensor, channels_last: bool) -> Tensor:
    """The map itself if the numbers of each row are side by side, else a copy."""
    if _strides(map_BCHW, channels_last) is not None:
        return map_BCHW
    return map_BCHW.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _strides(map_BCHW: Tensor, channels_last: bool) -> tuple[int, int] | None:
    """From sample to sample and from row to row; None if a row is not side by side."""
    _, c, h, w = map_BCHW.shape
    sample, channel, row, column = map_BCHW.stride()
    pixel = column if w > 1 else row
    near, width, apart = (channel, c, pixel) if channels_last else (pixel, h * w, channel)
    return (sample, apart) if (near == 1 or width == 1) and (h == 1 or w == 1 or row == w * column) else None


def _call(
    function: Callable[..., None],
    one_BCHW: Tensor,
    weights: Sequence[int],
    maps_BCHW: Sequence[Tensor],
    channels_last: bool,
) -> None:
    """
    Args:
        weights: their addresses.
    """
    table, copies = array("q"), []
    for map_BCHW, weight in zip((one_BCHW, *maps_BCHW), (0, *weights), strict=True):
        strides = _strides(map_BCHW, channels_last)
        if strides is None:
            map_BCHW = in_order(map_BCHW, channels_last)
            copies.append(map_BCHW)  # until the call is over
            strides = _strides(map_BCHW, channels_last)
            assert strides is not None
        table.extend((map_BCHW.data_ptr(), *strides, weight))
    b, c, h, w = one_BCHW.shape
    shape = _Shape(b, h * w, c, 1) if channels_last else _Shape(b, c, h * w, 0)
    address = table.buffer_info()[0]
    n = len(maps_BCHW)
    function(address, address + 4 * table.itemsize, n, shape, threads_for(n * one_BCHW.numel()))


def _loaded() -> CDLL:
    library = _library()
    assert isinstance(library, CDLL), library
    return library
