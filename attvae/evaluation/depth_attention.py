"""Where depth-wise attention looks: its probabilities, averaged over images and pixels, and how spread they are.

α(m→l) is the probability with which layer l attends to context m (paper, section 3.2), at one pixel of one image; here
mostly its mean over images and pixels.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Watched(Protocol):
    """A model that tells the probabilities [n, B, h, w] of each of its depth-wise attentions while it encodes."""

    def encode(self, x: Tensor, noise: list[Tensor]) -> list[Tensor]: ...

    def watched_depth_attention(self, watch: Callable[[str, Tensor], None]) -> AbstractContextManager[None]: ...


class LayerAttention(NamedTuple):
    """One layer l of a path. What it attends to is numbered as layers are: contexts 0 ... l - 1 in the generative path,
    features l ... L in the inference path, where l is the layer's own and L comes out of the pre-processing.
    """

    layer: int
    attended: range
    probabilities: tuple[float, ...]
    """α(m→l) of each m that it attends to: mean over images and pixels."""
    entropy_nats: float
    """H_l: mean over images and pixels of the entropy -Σ_m α log α at each of them."""

    @property
    def relative_entropy(self) -> float:
        """The entropy as a fraction of the largest one: 0 all on one, 1 all alike. Needs two or more."""
        return self.entropy_nats / math.log(len(self.attended))

    @property
    def effective_contexts(self) -> float:
        """exp(H_l): as many contexts, attended to alike, have this entropy."""
        return math.exp(self.entropy_nats)

    @property
    def distance(self) -> float:
        """Σ_m α(m→l) |l - m|: mean number of layers between l and what it attends to."""
        return sum(p * self._distance_to(other) for p, other in zip(self.probabilities, self.attended, strict=True))

    @property
    def share_beyond_nearest(self) -> float:
        """Σ α(m→l) over all m but the nearest: context l - 1 (generative path), feature l (inference path).

        A model without attention sees that one only.
        """
        nearest = min(self._distance_to(other) for other in self.attended)
        pairs = zip(self.probabilities, self.attended, strict=True)
        return sum(p for p, other in pairs if self._distance_to(other) > nearest)

    @property
    def most_attended(self) -> int:
        """The m of the largest α(m→l)."""
        return self.attended[max(range(len(self.attended)), key=self.probabilities.__getitem__)]

    def as_json(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "contexts": len(self.attended),
            "entropy_nats": self.entropy_nats,
            "relative_entropy": self.relative_entropy if len(self.attended) > 1 else None,
            "effective_contexts": self.effective_contexts,
            "distance": self.distance,
            "share_beyond_nearest": self.share_beyond_nearest,
            "most_attended": self.most_attended,
            "share_of_most_attended": max(self.probabilities),
        }

    def _distance_to(self, other: int) -> int:
        return abs(self.layer - other)


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

    def as_json(self, layers: int) -> dict[str, Any]:
        """Of each path, the layers' figures and `alpha`, rows l and columns m, 0 where l cannot attend to m.

        Args:
            layers: of the model, L.
        """
        paths = {}
        for path, columns in (("decoder", layers), ("encoder", layers + 1)):
            attending: tuple[LayerAttention, ...] = getattr(self, path)
            alpha = [[0.0] * columns for _ in range(layers)]
            for each in attending:
                alpha[each.layer][each.attended.start : each.attended.stop] = each.probabilities
            if attending:
                paths[path] = {"alpha": alpha, "layers": [each.as_json() for each in attending]}
        return paths


@torch.no_grad()
def depth_attention_of(model: Watched, x: Tensor, noise: list[Tensor]) -> DepthAttention:
    """Encodes the images x [B, C, H, W] and watches. Moving statistics are used, and nothing is left behind."""
    sums: dict[str, Tensor] = {}  # of the probabilities of each slot, of the entropy, of the pixels

    def watch(name: str, probabilities_nBHW: Tensor) -> None:
        p = probabilities_nBHW.double()
        found = torch.stack([*p.sum(dim=(1, 2, 3)), torch.special.entr(p).sum(), p.new_tensor(p[0].numel())])
        sums[name] = sums[name] + found if name in sums else found

    with model.watched_depth_attention(watch):
        model.encode(x, noise)
    found: dict[str, list[LayerAttention]] = {"decoder": [], "encoder": []}
    for name, (*totals, entropy, pixels) in ((name, each.tolist()) for name, each in sums.items()):
        path, _, layer = name.partition("/layer_")
        first = int(layer) if path == "encoder" else 0
        probabilities = tuple(total / pixels for total in totals)
        found[path].append(
            LayerAttention(int(layer), range(first, first + len(totals)), probabilities, entropy / pixels)
        )
    return DepthAttention(tuple(found["decoder"]), tuple(found["encoder"]))


@torch.no_grad()
def depth_attention_maps(model: Watched, x: Tensor, noise: list[Tensor]) -> dict[str, Tensor]:
    """The probabilities at each pixel of one image x [1, C, H, W]: [n, h, w] by the attention's name.

    The model has one head; the maps of a layer have the size of its grid.
    """
    maps: dict[str, Tensor] = {}
    with model.watched_depth_attention(lambda name, probabilities_nBHW: maps.update({name: probabilities_nBHW[:, 0]})):
        model.encode(x, noise)
    return maps
