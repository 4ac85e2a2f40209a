"""The evidence lower bound and its parts, averaged over images that may be spread over batches and ranks."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from attvae.objective import bits_per_dim
from attvae.spec import DataSpec

ACTIVE_NATS = 0.1
"""A layer whose KL is above this, in nats per image, is active: it tells the layers below something."""


class Elbo(Protocol):
    """What a model's forward pass gives back: nll [B], kl [L, B], nelbo [B], in nats."""

    @property
    def nll_nats(self) -> Tensor: ...
    @property
    def kl_nats(self) -> Tensor: ...
    @property
    def nelbo_nats(self) -> Tensor: ...


class ElboFigures(NamedTuple):
    nelbo_nats: float
    nll_nats: float
    kl_nats_per_layer: tuple[float, ...]
    bits_per_dim: float
    images: int

    def metrics(self, group: str) -> dict[str, float]:
        """The figures under the names that the journal and MLflow use."""
        figures = {
            f"{group}/nelbo_nats": self.nelbo_nats,
            f"{group}/nll_nats": self.nll_nats,
            f"{group}/kl_nats": sum(self.kl_nats_per_layer),
            f"{group}/bits_per_dim": self.bits_per_dim,
            f"{group}/active_layers": sum(kl > ACTIVE_NATS for kl in self.kl_nats_per_layer),
        }
        prefix = "kl" if group == "train" else f"{group}_kl"
        return figures | {f"{prefix}/layer_{i:02d}": kl for i, kl in enumerate(self.kl_nats_per_layer)}


class ElboSums:
    """Sums over images in double precision; the one division comes last, so batch size and ranks do not matter."""

    def __init__(self, layers: int, spec: DataSpec) -> None:
        self._spec = spec
        self._sums = torch.zeros(2 + layers, dtype=torch.float64)  # images, nll, kl of each layer

    def add(self, elbo: Elbo, weights: Tensor) -> None:
        """Adds a batch; `weights` [B] are 1, or 0 for images that do not count."""
        parts = torch.cat([torch.ones_like(elbo.nll_nats)[None], elbo.nll_nats.detach()[None], elbo.kl_nats.detach()])
        self._sums += (parts.double() @ weights.to(parts.device).double()).cpu()

    def merge(self, other: "ElboSums") -> None:
        self._sums += other._sums

    def state(self) -> list[float]:
        """What a checkpoint keeps of this rank, for JSON."""
        return self._sums.tolist()

    def restore(self, states: Sequence[Sequence[float]], rank: int, ranks: int) -> None:
        """Takes over what as many ranks had; the first takes it all where there are more now, or fewer."""
        if len(states) == ranks:
            self._sums += torch.tensor(states[rank], dtype=torch.float64)
        elif rank == 0:
            for state in states:
                self._sums += torch.tensor(state, dtype=torch.float64)

    def figures(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> ElboFigures | None:
        """The means over all ranks' images; None if there are none. Collective."""
        images, nll, *kl = sum_over_ranks(self._sums).tolist()
        if not images:
            return None
        nelbo = (nll + sum(kl)) / images
        return ElboFigures(
            nelbo_nats=nelbo,
            nll_nats=nll / images,
            kl_nats_per_layer=tuple(k / images for k in kl),
            bits_per_dim=bits_per_dim(nelbo, self._spec.dimensions),
            images=int(images),
        )
