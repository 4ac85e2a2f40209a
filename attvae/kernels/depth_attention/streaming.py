"""Depth-wise attention in PyTorch that goes over the slots one by one: they are never stacked.

The probabilities have a backward pass of their own, the sum over the slots has torch's: the gradient of one slot exists
at a time, and autograd adds it to those of the other layers while it is in the cache. Beyond keys and values, the query
and the probabilities are kept. The sums are taken in float32 where the slots have 16 bits. Legend as in `reference`.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from attvae.kernels.depth_attention.reference import attention_weights


def depth_attention(
    query_BKHW: Float[Tensor, "b k h w"],
    keys_BKHW: Sequence[Float[Tensor, "b k h w"]],
    values_BCHW: Sequence[Float[Tensor, "b c h w"]],
    scale: float = 1.0,
) -> Float[Tensor, "b c h w"]:
    """As `reference.depth_attention`; the result has the values' dtype. Second derivatives are an error.

    Raises:
        ValueError: no slots, or not as many keys as values.
    """
    if not keys_BKHW or len(keys_BKHW) != len(values_BCHW):
        raise ValueError(f"depth attention needs a key for each value, got {len(keys_BKHW)} and {len(values_BCHW)}")
    with torch.autocast(query_BKHW.device.type, enabled=False):  # it would keep a float32 copy of each slot
        p_nB1HW: Tensor = _Probabilities.apply(query_BKHW, scale, *keys_BKHW)  # type: ignore[no-untyped-call]
        first_B1HW, *others_B1HW = p_nB1HW.unbind()
        out_BCHW = values_BCHW[0] * first_B1HW
        for value_BCHW, weight_B1HW in zip(values_BCHW[1:], others_B1HW, strict=True):
            out_BCHW.addcmul_(value_BCHW, weight_B1HW)
        return out_BCHW.to(reduce(torch.promote_types, [value_BCHW.dtype for value_BCHW in values_BCHW]))


class _Probabilities(torch.autograd.Function):
    """p_n = softmax_n(scale <query, key_n>) as [n, B, 1, H, W], for n = 1 ... slots.

    With G_n the gradient of p_n and d_n = scale p_n (G_n - sum_m p_m G_m): d_n key_n summed over n is the query's
    gradient, d_n query that of key_n.
    """

    @staticmethod
    def forward(ctx: Any, query_BKHW: Tensor, scale: float, *keys_BKHW: Tensor) -> Tensor:
        exact = torch.promote_types(query_BKHW.dtype, torch.float32)
        p_nB1HW = attention_weights(query_BKHW.to(exact), keys_BKHW, scale).unsqueeze(2)
        ctx.save_for_backward(p_nB1HW, query_BKHW, *keys_BKHW)
        ctx.scale = scale
        return p_nB1HW

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nB1HW: Tensor) -> tuple[Tensor | None, ...]:
        p_nB1HW, query_BKHW, *keys_BKHW = ctx.saved_tensors
        d_nB1HW = ctx.scale * p_nB1HW * (grad_nB1HW - (p_nB1HW * grad_nB1HW).sum(dim=0))
        grad_query_BKHW: Tensor | None = None
        if ctx.needs_input_grad[0]:
            grad_query_BKHW = keys_BKHW[0] * d_nB1HW[0]
            for key_BKHW, d_B1HW in zip(keys_BKHW[1:], d_nB1HW[1:], strict=True):
                grad_query_BKHW.addcmul_(key_BKHW, d_B1HW)
            grad_query_BKHW = grad_query_BKHW.to(query_BKHW.dtype)
        grad_keys_BKHW = [
            (d_B1HW * query_BKHW).to(key_BKHW.dtype) if needed else None
            for d_B1HW, key_BKHW, needed in zip(d_nB1HW, keys_BKHW, ctx.needs_input_grad[2:], strict=True)
        ]
        return (grad_query_BKHW, None, *grad_keys_BKHW)
