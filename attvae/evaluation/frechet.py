"""The Fréchet distance between the features of two sets of images (Heusel et al. 2017): FID, for Inception's features.

d² = |m₁ - m₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁Σ₂)^½), the squared 2-Wasserstein distance of the two Gaussians with the features'
means and covariances. It is the square that the literature calls FID.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from attvae.evaluation.image_means import Estimate

GROUPS = 10
"""Parts that images are dealt into, by their number modulo this, for the standard error."""


class FeatureMoments:
    """Count, sum and products of features in double precision, for each of GROUPS groups of images."""

    def __init__(self, dimensions: int) -> None:
        self.counts = torch.zeros(GROUPS, dtype=torch.float64)
        self.sums = torch.zeros(GROUPS, dimensions, dtype=torch.float64)
        self.products = torch.zeros(GROUPS, dimensions, dimensions, dtype=torch.float64)

    def add(self, features: Float[Tensor, "b d"], numbers: Int64[Tensor, "b"]) -> None:
        """
        Args:
            numbers: of the images; every image is added once.
        """
        for group in range(GROUPS):
            own = features[numbers % GROUPS == group].double().cpu()
            self.counts[group] += len(own)
            self.sums[group] += own.sum(dim=0)
            self.products[group].addmm_(own.T, own)

    def sum_over_ranks(self, total: Callable[[Tensor], Tensor]) -> None:
        """Makes these the moments of all ranks' images. Collective."""
        self.counts = total(self.counts).cpu()
        self.sums = total(self.sums).cpu()
        for products in self.products:  # one after the other: they are large
            products.copy_(total(products))

    def gaussian(self, without: int | None = None) -> tuple[Float[Tensor, "d"], Float[Tensor, "d d"]]:
        """Mean and covariance (divisor n - 1), of all groups or of all but one."""

        def total(parts: Tensor) -> Tensor:
            return parts.sum(dim=0) - (0 if without is None else parts[without])

        n = total(self.counts)
        mean = total(self.sums) / n
        return mean, (total(self.products) - n * torch.outer(mean, mean)) / (n - 1)


def frechet_distance(
    mean_1: Float[Tensor, "d"], covariance_1: Float[Tensor, "d d"], mean_2: Tensor, covariance_2: Tensor
) -> float:
    """d² of two Gaussians; float64. The covariances may be singular.

    The eigenvalues of Σ₁Σ₂ are those of the symmetric Σ₁^½ Σ₂ Σ₁^½, and their roots the singular values of Σ₂^½ Σ₁^½:
    their sum needs no root of an eigenvalue that is zero but for rounding.
    """
    root = torch.linalg.svdvals(_square_root(covariance_2) @ _square_root(covariance_1)).sum()
    distance = (mean_1 - mean_2).square().sum() + covariance_1.trace() + covariance_2.trace() - 2 * root
    return float(distance.clamp_min(0))  # not by max(), which would make 0 of what is not a number


def _square_root(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def frechet_estimate(one: FeatureMoments, other: FeatureMoments) -> Estimate:
    """The distance between two sets of images, and its standard error by the jackknife.

    GROUPS times, a tenth of the images of both sets is left out: √((G - 1) / G Σ (d²_g - mean)²) covers which images
    both sets happen to hold. It does not cover the bias, which is upwards and shrinks with the number of images. None
    where a set has fewer than two images in a group.
    """
    value = frechet_distance(*one.gaussian(), *other.gaussian())
    if min(float(one.counts.min()), float(other.counts.min())) < 2:
        return Estimate(value, None)
    without = [frechet_distance(*one.gaussian(g), *other.gaussian(g)) for g in range(GROUPS)]
    mean = sum(without) / GROUPS
    return Estimate(value, math.sqrt((GROUPS - 1) / GROUPS * sum((each - mean) ** 2 for each in without)))
