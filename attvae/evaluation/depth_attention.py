"""Where depth-wise attention looks: its probabilities, averaged over images and pixels, and how spread they are."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Watched(Protocol):
    """A model that tells the probabilities [n, B, h, w] of each of its depth-wise attentions while it encodes."""

    def encode(self, x: Tensor, noise: list[Tensor]) -> list[Tensor]: ...

    def watched_depth_attention(self, watch: Callable[[str, Tensor], None]) -> AbstractContextManager[None]: ...


class LayerAttention(NamedTuple):
    """One layer m of a path. What it attends to is numbered as layers are: contexts 0 ... m - 1 in the generative path,
    features m ... L in the inference path, where m is the layer's own and L comes out of the pre-processing.
    """

    layer: int
    attended: range
    probabilities: tuple[float, ...]
    """Of each one attended to: mean over images and pixels."""
    entropy_nats: float
    """Mean over images and pixels of the entropy at each of them."""

    @property
    def relative_entropy(self) -> float:
        """The entropy as a fraction of the largest one: 0 all on one, 1 all alike. Needs two or more."""
        return self.entropy_nats / math.log(len(self.attended))

    @property
    def distance(self) -> float:
        """Mean number of layers between m and what it attends to."""
        return sum(p * abs(self.layer - other) for p, other in zip(self.probabilities, self.attended, strict=True))


class DepthAttention(NamedTuple):
    """The layers of both paths that attend; none where a path is without."""

    decoder: tuple[LayerAttention, ...]
    encoder: tuple[LayerAttention, ...]

    def metrics(self) -> dict[str, float]:
        """`attention/entropy_<path>`, from 0 (all on one) to 1 (all alike), and `attention/distance_<path>` in layers.

        Both are means over the layers that have a choice: two or more to attend to.
        """
        figures = {}
        for path, layers in self._asdict().items():
            if choosing := [layer for layer in layers if len(layer.attended) > 1]:
                figures[f"attention/entropy_{path}"] = sum(each.relative_entropy for each in choosing) / len(choosing)
                figures[f"attention/distance_{path}"] = sum(each.distance for each in choosing) / len(choosing)
        return figures


@torch.no_grad()
def depth_attention_of(model: Watched, x: Tensor, noise: list[Tensor]) -> DepthAttention:
    """Encodes the images x [B, C, H, W] and watches. Moving statistics are used, and nothing is left behind."""
    found: dict[str, list[LayerAttention]] = {"decoder": [], "encoder": []}

    def watch(name: str, probabilities_nBHW: Tensor) -> None:
        path, _, layer = name.partition("/layer_")
        first, n = (int(layer) if path == "encoder" else 0), len(probabilities_nBHW)
        entropy = torch.special.entr(probabilities_nBHW.double()).sum(dim=0).mean()
        mean = probabilities_nBHW.double().mean(dim=(1, 2, 3))
        found[path].append(LayerAttention(int(layer), range(first, first + n), tuple(mean.tolist()), float(entropy)))

    with model.watched_depth_attention(watch):
        model.encode(x, noise)
    return DepthAttention(tuple(found["decoder"]), tuple(found["encoder"]))
