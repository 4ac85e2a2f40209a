"""All figures of a model on the images of a split, each with its standard error."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from attvae.evaluation.active_units import ActiveUnits, LayerUnits
from attvae.evaluation.elbo import Elbo, ElboFigures
from attvae.evaluation.image_means import Estimate, ImageMeans
from attvae.evaluation.importance_weighted import importance_weighted_nll_nats
from attvae.objective import bits_per_dim
from attvae.spec import DataSpec


class Traced(Elbo, Protocol):
    """A bound with its intermediates, where they were asked for: `layer.<l>.posterior_mu` [B, Z, h, w] among them."""

    @property
    def trace(self) -> dict[str, Tensor] | None: ...


class Evaluated(Protocol):
    """What is asked of a model; `attvae.model.vae.DeepVAE` says what it means."""

    training: bool

    def __call__(self, x: Tensor, noise: list[Tensor], trace: bool = False) -> Traced: ...
    def log_weights(self, x: Tensor, noises: Iterable[list[Tensor]]) -> Iterator[Tensor]: ...
    def train(self, mode: bool) -> object: ...


class DrawnBatch(NamedTuple):
    """Images [B, C, H, W], the noise of their k-th importance sample (that of the bound itself for k = 0), and weights
    [B], which are 0 for images that do not count.
    """

    x: Tensor
    noise: Callable[[int], list[Tensor]]
    weights: Tensor


class SplitFigures(NamedTuple):
    """Means over images, in nats per image where nothing else is said.

    `iw_nll_nats` and `active_units` are None where they were not asked for, or cannot be had from a single image.
    """

    nelbo_nats: Estimate
    nll_nats: Estimate
    kl_nats: Estimate
    kl_nats_per_layer: tuple[Estimate, ...]
    bits_per_dim: Estimate
    iw_nll_nats: Estimate | None
    iw_bits_per_dim: Estimate | None
    active_units: tuple[LayerUnits, ...] | None
    images: int
    draws: int

    def elbo(self) -> ElboFigures:
        """The means of the bound alone."""
        return ElboFigures(
            nelbo_nats=self.nelbo_nats.value,
            nll_nats=self.nll_nats.value,
            kl_nats_per_layer=tuple(kl.value for kl in self.kl_nats_per_layer),
            bits_per_dim=self.bits_per_dim.value,
            images=self.images,
        )


@torch.no_grad()
def evaluate_split(
    model: Evaluated,
    draws: Iterable[Iterable[DrawnBatch]],
    *,
    latent_shapes: Sequence[tuple[int, ...]],
    spec: DataSpec,
    sum_over_ranks: Callable[[Tensor], Tensor],
    importance_samples: int | None = None,
) -> SplitFigures:
    """Means over all images of this rank's batches and the other ranks' alike. Collective.

    Forward passes have the size of a batch, whatever the number of importance samples.

    Args:
        draws: the same batches again and again, with other noise (and binarisation); an image's figures are averaged.
        importance_samples: K, for the importance-weighted bound of each draw.

    Raises:
        ValueError: no image counts.
    """
    was_training = model.training
    model.train(False)
    images, units, count = ImageMeans(), ActiveUnits(latent_shapes), 0
    for draw, batches in enumerate(draws):
        count += 1
        for number, (x, noise, weights) in enumerate(batches):
            first = draw == 0
            elbo = model(x, noise(0), trace=first)
            if first:
                assert elbo.trace is not None, "it was asked for"
                units.add([elbo.trace[f"layer.{i}.posterior_mu"] for i in range(len(latent_shapes))], weights)
            nll, kl = elbo.nll_nats.double(), elbo.kl_nats.double()
            figures = [nll + kl.sum(dim=0), nll, kl.sum(dim=0), *kl]
            del elbo  # and all that it has kept
            if importance_samples:
                figures.append(
                    importance_weighted_nll_nats(model.log_weights(x, map(noise, range(importance_samples))))
                )
            images.add(number, torch.stack(figures), weights)
    model.train(was_training)
    (nelbo, nll_mean, kl_mean, *rest), number_of_images = images.estimates(sum_over_ranks)
    iw = rest.pop() if importance_samples else None
    per_nat = bits_per_dim(1.0, spec.dimensions)
    return SplitFigures(
        nelbo_nats=nelbo,
        nll_nats=nll_mean,
        kl_nats=kl_mean,
        kl_nats_per_layer=tuple(rest),
        bits_per_dim=nelbo.scaled(per_nat),
        iw_nll_nats=iw,
        iw_bits_per_dim=iw.scaled(per_nat) if iw else None,
        active_units=units.figures(sum_over_ranks),
        images=number_of_images,
        draws=count,
    )
