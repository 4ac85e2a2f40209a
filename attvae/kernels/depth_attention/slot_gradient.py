"""The gradient of a slot that many layers attend to: a sum over these layers, made in one pass when all are through.

Each layer's part of it is a map under weights. Were each layer to multiply the two, autograd would write and read every
product, and keep a gradient of each slot from the first layer of the backward pass on. So layers that can leave weights
and map here, and the node of the cut, which autograd runs after all of them, sums them up. Legend: B batch, C value
channels, K key channels, H and W the map.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attvae.compiled_c import left_to_torch
from attvae.kernels.depth_attention import weighted_maps


def cut(whole_BCHW: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """The value, which is the first `channels`, and the key.

    Gradients of these two by themselves, and second derivatives, are errors. Ask for that of the whole and of one of
    the two in one call, and what the layers have left is in the whole's only.
    """
    collects = whole_BCHW.requires_grad and torch.is_grad_enabled() and left_to_torch() is None
    if collects and whole_BCHW.device.type == "cpu" and whole_BCHW.dtype == torch.float32:
        return _Cut.apply(whole_BCHW, channels)  # type: ignore[no-untyped-call]
    value_BCHW, key_BKHW = whole_BCHW.split([channels, whole_BCHW.shape[1] - channels], dim=1)
    return value_BCHW, key_BKHW


def place_of(value_or_key: Tensor) -> "Place | None":
    """Where layers may leave their part of its gradient; None if it goes through autograd, as anywhere else."""
    if value_or_key.retains_grad or value_or_key._backward_hooks:  # who looks at it wants all of it
        return None
    node = value_or_key.grad_fn
    left = getattr(node, "left_by_layers", None)
    return Place(node, left[value_or_key.output_nr]) if left else None


class Place(NamedTuple):
    """Beside the node of the cut, which sums up what was left in a backward pass that comes through it."""

    node: Any
    parts: "Parts"

    def leave(self, weights_BHW: Tensor, map_BCHW: Tensor) -> None:
        if torch._C._will_engine_execute_node(self.node):
            self.parts.add(weights_BHW, map_BCHW)


class Parts:
    """What layers have left for the gradient of a key or of a value, for each backward pass that is under way.

    What a pass that ends by an exception leaves stays until the graph goes; no other pass takes it.
    """

    def __init__(self) -> None:
        self._left: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def add(self, weights_BHW: Tensor, map_BCHW: Tensor) -> None:
        this = _this_pass()
        if this not in self._left:
            self._left[this] = []
            torch.autograd.Variable._execution_engine.queue_callback(partial(self._at_the_end_of, this))
        self._left[this].append((weights_BHW, map_BCHW))

    def _at_the_end_of(self, number: int) -> None:
        if self._left.pop(number, None):
            raise RuntimeError(
                "the gradient of a slot's value or key by itself was asked for, which autograd does not see whole: "
                "ask for that of the slot, or cut it by Tensor.split"
            )

    def sum_up(self, out_BCHW: Tensor, given_BCHW: Tensor | None) -> None:
        """Sets `out_BCHW` to their sum, and forgets them; `given_BCHW` is what came through autograd."""
        left = self._left.pop(_this_pass(), None)
        if left is None:
            out_BCHW.zero_() if given_BCHW is None else out_BCHW.copy_(given_BCHW)
            return
        weights_BHW, maps_BCHW = zip(*left, strict=True)
        weighted_maps.weighted_sum(out_BCHW, weights_BHW, maps_BCHW)
        if given_BCHW is not None:
            out_BCHW.add_(given_BCHW)


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, whole_BCHW: Tensor, channels: int) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.left_by_layers = Parts(), Parts()
        ctx.widths = channels, whole_BCHW.shape[1] - channels
        ctx.shape = whole_BCHW.shape
        ctx.channels_last = weighted_maps.is_channels_last(whole_BCHW)
        return whole_BCHW.split(ctx.widths, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *given_BCHW: Tensor | None) -> tuple[Tensor, None]:
        order = torch.channels_last if ctx.channels_last else torch.contiguous_format
        grad_BCHW = torch.empty(ctx.shape, dtype=torch.float32, device="cpu", memory_format=order)
        for parts, out_BCHW, given in zip(
            ctx.left_by_layers, grad_BCHW.split(ctx.widths, dim=1), given_BCHW, strict=True
        ):
            parts.sum_up(out_BCHW, given)
        return grad_BCHW, None


def _this_pass() -> int:
    """Its number: autograd may go through a graph several times, and through some of it only."""
    return torch._C._current_graph_task_id()
