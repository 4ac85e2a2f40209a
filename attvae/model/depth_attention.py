"""Depth-wise attention of the generative and of the inference path (paper, section 3.2).

Both end in condition + gamma * a with a learned gate gamma that starts at 0. A slot that is `hidden` is left out of a,
and the probabilities of the others grow so that they sum to 1. `implementation` is that of `engine.depth_attention`.
Legend: B batch, C value channels, K key channels, H and W the map.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attvae.kernels.depth_attention.choose import Implementation, choose
from attvae.kernels.depth_attention.reference import attention_weights
from attvae.kernels.depth_attention.slot_gradient import cut
from attvae.model.config import DepthAttentionConfig
from attvae.model.layers import ChannelLayerNorm, LayerNormGelu


class Slot(NamedTuple):
    """A context, or a bottom-up feature, and the two parts of it that the layers attend to.

    It is cut once: were each layer to cut it anew, the backward pass would make a gradient of the whole for each cut.
    """

    whole: Float[Tensor, "b c_and_k h w"]
    value: Float[Tensor, "b c h w"]
    key: Float[Tensor, "b k h w"]

    @classmethod
    def cut(cls, whole: Tensor, channels: int) -> "Slot":
        """The first `channels` are the value, the others the key."""
        value, key = cut(whole, channels)
        return cls(whole, value, _planes(key))


class DecoderAttention(nn.Module):
    """A layer of the generative path attends to the contexts of the layers above it."""

    def __init__(self, channels: int, config: DepthAttentionConfig):
        super().__init__()
        self.channels, self.key_dim = channels, config.key_dim
        self.gamma = nn.Parameter(torch.zeros(1))
        self.scale = _scale(config)
        self.muted = False
        self.hidden: int | None = None
        self.implementation: Implementation = "auto"
        self.layer_norm = config.layer_norm
        if config.layer_norm:
            self.ln_value = ChannelLayerNorm(channels)
            self.ln_attn = LayerNormGelu(channels)
            self.ln_context = LayerNormGelu(channels)

    def forward(
        self,
        context_BCHW: Float[Tensor, "b c h w"],
        query_BKHW: Float[Tensor, "b k h w"],
        keys_BKHW: Sequence[Float[Tensor, "b k h w"]],
        values_BCHW: Sequence[Float[Tensor, "b c h w"]],
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """The context that later layers see, and the condition of the prior."""
        if self.layer_norm:
            context_BCHW = self.ln_context(context_BCHW)
        if self.muted:
            return context_BCHW, context_BCHW
        if self.layer_norm:
            # Older slots are normalised already, key and value together.
            values_BCHW = [*values_BCHW[:-1], self.ln_value(values_BCHW[-1])]
        keys_BKHW, values_BCHW = _without(self.hidden, keys_BKHW), _without(self.hidden, values_BCHW)
        query_BKHW = _planes(_scaled(query_BKHW, self.scale))
        attend, _ = choose(self.implementation, query_BKHW, keys_BKHW, values_BCHW)
        a_BCHW = attend(query_BKHW, keys_BKHW, values_BCHW)
        if self.layer_norm:
            a_BCHW = self.ln_attn(a_BCHW)
        return context_BCHW, torch.addcmul(context_BCHW, self.gamma, a_BCHW)

    def probabilities(
        self, _context: Tensor, query_BKHW: Tensor, keys_BKHW: Sequence[Tensor], _values: Sequence[Tensor]
    ) -> Float[Tensor, "n b h w"]:
        """What `forward` would weigh the slots with, none hidden; the first slot is the top layer's."""
        return attention_weights(_scaled(query_BKHW, self.scale), keys_BKHW)


class EncoderAttention(nn.Module):
    """A layer of the inference path attends to its own condition and to the deeper bottom-up features."""

    def __init__(self, channels: int, config: DepthAttentionConfig):
        super().__init__()
        self.channels, self.key_dim = channels, config.key_dim
        self.gamma = nn.Parameter(torch.zeros(1))
        self.scale = _scale(config)
        self.muted = False
        self.hidden: int | None = None
        self.implementation: Implementation = "auto"
        self.layer_norm = config.layer_norm
        if config.layer_norm:
            self.ln_cond = LayerNormGelu(channels)
            self.ln_attn = LayerNormGelu(channels)

    def forward(
        self,
        query_BKHW: Float[Tensor, "b k h w"],
        keys_BKHW: Sequence[Float[Tensor, "b k h w"]],
        values_BCHW: Sequence[Float[Tensor, "b c h w"]],
    ) -> Float[Tensor, "b c h w"]:
        """The condition of the posterior; the first slot is the layer's own."""
        condition_BCHW = values_BCHW[0]
        if self.layer_norm:
            condition_BCHW = self.ln_cond(condition_BCHW)
        if self.muted:
            return condition_BCHW
        keys_BKHW, values_BCHW = _without(self.hidden, keys_BKHW), _without(self.hidden, values_BCHW)
        query_BKHW = _planes(_scaled(query_BKHW, self.scale))
        attend, _ = choose(self.implementation, query_BKHW, keys_BKHW, values_BCHW)
        a_BCHW = attend(query_BKHW, keys_BKHW, values_BCHW)
        if self.layer_norm:
            a_BCHW = self.ln_attn(a_BCHW)
        return torch.addcmul(condition_BCHW, self.gamma, a_BCHW)

    def probabilities(
        self, query_BKHW: Tensor, keys_BKHW: Sequence[Tensor], _values: Sequence[Tensor]
    ) -> Float[Tensor, "n b h w"]:
        """What `forward` would weigh the slots with, none hidden; the first slot is the layer's own."""
        return attention_weights(_scaled(query_BKHW, self.scale), keys_BKHW)


def _without(hidden: int | None, slots: Sequence[Tensor]) -> Sequence[Tensor]:
    return slots if hidden is None else [slot for n, slot in enumerate(slots) if n != hidden]


def _scale(config: DepthAttentionConfig) -> nn.Parameter | None:
    match config.scale:
        case "published":
            return None
        case "learned":
            return nn.Parameter(torch.ones(1))


def _scaled(query_BKHW: Tensor, scale: nn.Parameter | None) -> Tensor:
    return query_BKHW if scale is None else query_BKHW * (scale / math.sqrt(query_BKHW.shape[1])).to(query_BKHW.dtype)


def _planes(x_BKHW: Tensor) -> Tensor:
    """On the CPU, without gradients, channel after channel: its products are fast there, those of a slice of a
    channels-last map take four times as long. With gradients it gains nothing, and would be kept.
    """
    return x_BKHW if x_BKHW.device.type != "cpu" or torch.is_grad_enabled() else x_BKHW.contiguous()
