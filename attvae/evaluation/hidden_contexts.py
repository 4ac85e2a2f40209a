"""What it costs to switch off the context that a layer attends to most."""

from typing import Any, NamedTuple

from torch import Tensor

from attvae.evaluation.depth_attention import DepthAttention
from attvae.evaluation.in_chunks import InChunks


class HiddenContext(NamedTuple):
    """Layer l of a path without context m; the others' probabilities sum to 1."""

    path: str
    layer: int
    context: int
    probability: float
    """α(m→l)"""
    nelbo_change_nats: float
    """Mean over images: positive where the context was of use."""
    standard_error: float | None
    """Of that mean; None where there is one image only."""

    def as_json(self) -> dict[str, Any]:
        return self._asdict()


def most_attended_hidden(
    model: InChunks, attention: DepthAttention, x: Tensor, noise: list[Tensor]
) -> list[HiddenContext]:
    """Each layer that has a choice in turn, with the same noise; one forward pass of all images a layer."""
    before = model.nelbo_nats(x, noise).double()
    found = []
    for path, layers in attention._asdict().items():
        for each in layers:
            if len(each.attended) > 1:
                slot = each.attended.index(each.most_attended)
                with model.hidden_context(f"{path}/layer_{each.layer:02d}", slot):
                    change = model.nelbo_nats(x, noise).double() - before
                error = float(change.std()) / len(change) ** 0.5 if len(change) > 1 else None
                place = (path, each.layer, each.most_attended)
                found.append(HiddenContext(*place, each.probabilities[slot], float(change.mean()), error))
    return found
