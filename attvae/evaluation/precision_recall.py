"""Precision and recall of samples against images of the data (Kynkäänniemi et al. 2019), over features.

A set of images covers the balls around their features that reach to the k-th nearest other image of the set. Precision
is the share of samples in the area that the images cover, recall the share of images in that of the samples.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attvae.evaluation.image_means import Estimate

NEIGHBOURS = 3
"""k, as published."""

_BLOCK = 2048
"""Features on either side of a table of distances: all the memory that is needed beside the features."""
_SAME_PLACE = 1e-5
"""Of the features' spread: float32 does not tell what is closer apart from the same image in another batch."""


class PrecisionRecall(NamedTuple):
    precision: Estimate
    recall: Estimate


def precision_recall(
    images: Float[Tensor, "n d"],
    samples: Float[Tensor, "m d"],
    rank: int = 0,
    ranks: int = 1,
    sum_over_ranks: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> PrecisionRecall:
    """Each rank has all features and does its part of the work. Collective.

    The standard errors are √(p (1 - p) / n): which samples were drawn for precision, which images for recall, the area
    that the other set covers taken as given.
    """
    centre = images.double().mean(dim=0)
    least = (_SAME_PLACE**2) * float(_norms(images, centre).mean())

    def share_covered(queries: Tensor, by: Tensor) -> Estimate:
        squared_radii = torch.zeros(len(by), dtype=torch.float64, device=by.device)
        for rows in _rows(len(by), rank, ranks):
            squared_radii[rows] = _squared_radii(by[rows], by, centre)
        squared_radii = sum_over_ranks(squared_radii).to(by.device).clamp_min(least)
        covered = torch.zeros(1, dtype=torch.float64, device=by.device)
        for rows in _rows(len(queries), rank, ranks):
            covered += _covered(queries[rows], by, squared_radii, centre).sum()
        share = float(sum_over_ranks(covered)) / len(queries)
        return Estimate(share, math.sqrt(share * (1 - share) / len(queries)))

    return PrecisionRecall(precision=share_covered(samples, images), recall=share_covered(images, samples))


def _rows(n: int, rank: int, ranks: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(rank * _BLOCK, n, ranks * _BLOCK)]


def _norms(features: Float[Tensor, "n d"], centre: Float[Tensor, "d"]) -> Float[Tensor, "n"]:
    parts = [(part.double() - centre).square().sum(dim=1) for part in features.split(_BLOCK)]
    return torch.cat(parts)


def _squared_distances(a: Tensor, b: Tensor, centre: Tensor) -> Float[Tensor, "a b"]:
    """By a product of matrices, which costs digits: in double precision, and about a centre, there are enough."""
    a, b = a.double() - centre, b.double() - centre
    return (a.square().sum(dim=1)[:, None] - 2 * a @ b.T + b.square().sum(dim=1)).clamp_min(0)


def _squared_radii(queries: Tensor, among: Tensor, centre: Tensor) -> Float[Tensor, "a"]:
    """To the k-th nearest other one; the nearest of all is the query itself."""
    nearest = torch.empty(len(queries), 0, dtype=torch.float64, device=queries.device)
    for block in among.split(_BLOCK):
        seen = torch.cat([nearest, _squared_distances(queries, block, centre)], dim=1)
        nearest = seen.topk(min(NEIGHBOURS + 1, seen.shape[1]), dim=1, largest=False).values
    return nearest[:, NEIGHBOURS]


def _covered(queries: Tensor, by: Tensor, squared_radii: Tensor, centre: Tensor) -> Bool[Tensor, "a"]:
    covered = torch.zeros(len(queries), dtype=torch.bool, device=queries.device)
    for block, radii in zip(by.split(_BLOCK), squared_radii.split(_BLOCK), strict=True):
        covered |= (_squared_distances(queries, block, centre) <= radii).any(dim=1)
    return covered
