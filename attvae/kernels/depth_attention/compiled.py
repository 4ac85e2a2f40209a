"""Depth-wise attention on the CPU in C: in both passes each key and each value is read once, and no other map is made.

Kept for the backward pass are the query and the probabilities, beyond keys and values. With p_n the weight of slot n, g
the gradient of the output and d_n = scale p_n (<g, value_n> - sum_m p_m <g, value_m>):

    grad value_n = p_n g,    grad key_n = d_n query,    grad query = sum of d_n key_n

The first two wait, not multiplied, for those of the other layers (`slot_gradient`). Legend as in `reference`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attvae.compiled_c import left_to_torch
from attvae.kernels.depth_attention import weighted_maps
from attvae.kernels.depth_attention.slot_gradient import Place, place_of
from attvae.kernels.depth_attention.weighted_maps import (
    in_order,
    is_channels_last,
    products,
    softmax_,
    softmax_gradient_,
    weighted_sum,
)


def unsupported(query_BKHW: Tensor, keys_BKHW: Sequence[Tensor], values_BCHW: Sequence[Tensor]) -> str | None:
    """Why it cannot run on these, in a sentence; None if it can."""
    if (reason := left_to_torch()) is not None:
        return reason
    if not keys_BKHW or len(keys_BKHW) != len(values_BCHW):
        return f"it needs a key for each value, got {len(keys_BKHW)} and {len(values_BCHW)}"
    b, k, h, w = query_BKHW.shape
    c = values_BCHW[0].shape[1]
    if 0 in (b, k, h, w, c):
        return f"it needs at least one sample, channel and pixel, got {b}x{k}x{h}x{w} and {c} value channels"
    value_shape = (b, c, h, w)
    for name, slots, shape in (
        ("query", (query_BKHW,), query_BKHW.shape),
        ("key", keys_BKHW, query_BKHW.shape),
        ("value", values_BCHW, value_shape),
    ):
        for n, slot in enumerate(slots):
            if not slot.is_cpu:
                return f"it needs the CPU, {name} {n} is on {slot.device}"
            if slot.dtype != torch.float32:
                return f"it takes float32, {name} {n} is {str(slot.dtype).removeprefix('torch.')}"
            if slot.shape != shape:
                return f"{name} {n} is {list(slot.shape)}, not {list(shape)}"
    return weighted_maps.why_not()


def depth_attention(
    query_BKHW: Tensor, keys_BKHW: Sequence[Tensor], values_BCHW: Sequence[Tensor], scale: float = 1.0
) -> Tensor:
    """As `reference.depth_attention`, the same bits with any number of threads. Second derivatives are an error.

    Keys and values may have any strides, but those whose channels or pixels are not side by side are copied.

    Raises:
        ValueError: what `unsupported` says.
    """
    reason = unsupported(query_BKHW, keys_BKHW, values_BCHW)
    if reason is not None:
        raise ValueError(f"depth-wise attention cannot run in C: {reason}")
    slots = (*keys_BKHW, *values_BCHW)
    if not torch.is_grad_enabled():
        return _attended(scale, query_BKHW, slots)[0]
    places = [place_of(slot) for slot in slots]
    out_BCHW: Tensor = _DepthAttention.apply(scale, places, query_BKHW, *slots)  # type: ignore[no-untyped-call]
    return out_BCHW


def _attended(scale: float, query_BKHW: Tensor, slots: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The output, and the probabilities [n, B, H, W]."""
    n = len(slots) // 2
    p_nBHW = products(query_BKHW, slots[:n])
    softmax_(p_nBHW, scale)
    out_BCHW = _like(slots[-1])
    weighted_sum(out_BCHW, p_nBHW.unbind(), slots[n:])
    return out_BCHW, p_nBHW


class _DepthAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale: float, places: list[Place | None], query_BKHW: Tensor, *slots: Tensor) -> Tensor:
        out_BCHW, p_nBHW = _attended(scale, query_BKHW, slots)
        ctx.save_for_backward(p_nBHW, query_BKHW, *slots)
        ctx.scale, ctx.places = scale, places
        return out_BCHW

    @staticmethod
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # autograd does not see what is left at the cuts, and could not warn later
            raise RuntimeError(
                "depth-wise attention in C has no second derivatives, which create_graph=True prepares: do without it"
            )
        p_nBHW, query_BKHW, *slots = ctx.saved_tensors
        n = len(slots) // 2
        keys_BKHW, values_BCHW = slots[:n], slots[n:]
        # Once, not in each slot's sum.
        grad_BCHW = in_order(grad_BCHW, is_channels_last(values_BCHW[-1]))
        query_BKHW = in_order(query_BKHW, is_channels_last(keys_BKHW[-1]))
        d_nBHW = products(grad_BCHW, values_BCHW)
        softmax_gradient_(d_nBHW, p_nBHW, ctx.scale)
        d_BHW, p_BHW = d_nBHW.unbind(), p_nBHW.unbind()
        grad_query_BKHW: Tensor | None = None
        if ctx.needs_input_grad[2]:
            grad_query_BKHW = _like(query_BKHW)
            weighted_sum(grad_query_BKHW, d_BHW, keys_BKHW)
        factors = [(weights_BHW, query_BKHW) for weights_BHW in d_BHW] + [(p, grad_BCHW) for p in p_BHW]
        grads: list[Tensor | None] = []
        for (weights_BHW, map_BCHW), place, needed in zip(factors, ctx.places, ctx.needs_input_grad[3:], strict=True):
            if needed and place:
                place.leave(weights_BHW, map_BCHW)
            grads.append(map_BCHW * weights_BHW.unsqueeze(1) if needed and not place else None)
        return None, None, grad_query_BKHW, *grads


def _like(map_BCHW: Tensor) -> Tensor:
    return torch.empty_like(
        map_BCHW, memory_format=torch.channels_last if is_channels_last(map_BCHW) else torch.contiguous_format
    )
