"""Depth-wise attention in plain PyTorch: at each pixel a layer attends to the earlier layers (paper, section 3.2).

Slots stay separate tensors: stacking them anew in every layer would copy all earlier contexts L times. Legend: B
batch, H and W the map, K key width, C value width, n slots.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def attention_weights(
    query_BKHW: Float[Tensor, "b k h w"], keys_BKHW: Sequence[Float[Tensor, "b k h w"]], scale: float = 1.0
) -> Float[Tensor, "n b h w"]:
    """softmax over the slots n of scale * <query, key_n>; the paper's code has scale 1, not 1 / sqrt(K)."""
    scores_nBHW = torch.stack([(query_BKHW * key_BKHW).sum(dim=1) for key_BKHW in keys_BKHW])
    return (scale * scores_nBHW).softmax(dim=0)


def depth_attention(
    query_BKHW: Float[Tensor, "b k h w"],
    keys_BKHW: Sequence[Float[Tensor, "b k h w"]],
    values_BCHW: Sequence[Float[Tensor, "b c h w"]],
    scale: float = 1.0,
) -> Float[Tensor, "b c h w"]:
    """Sum of the slots' values under the attention weights.

    Raises:
        ValueError: no slots, or not as many keys as values.
    """
    if not keys_BKHW or len(keys_BKHW) != len(values_BCHW):
        raise ValueError(f"depth attention needs a key for each value, got {len(keys_BKHW)} and {len(values_BCHW)}")
    first_B1HW, *others_B1HW = attention_weights(query_BKHW, keys_BKHW, scale).unsqueeze(2)
    out_BCHW = first_B1HW * values_BCHW[0]
    for weight_B1HW, value_BCHW in zip(others_B1HW, values_BCHW[1:], strict=True):
        out_BCHW = torch.addcmul(out_BCHW, weight_B1HW, value_BCHW)
    return out_BCHW
