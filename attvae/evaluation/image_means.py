"""Means over images with their standard errors; the images may be spread over batches and ranks."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Estimate(NamedTuple):
    """A mean over images; its standard error is None where there is one image only."""

    value: float
    standard_error: float | None

    def scaled(self, factor: float) -> "Estimate":
        error = self.standard_error
        return Estimate(factor * self.value, None if error is None else factor * error)


class ImageMeans:
    """Some figures of each image of this rank, each averaged over the image's draws.

    Kept in double precision for every image, 8 bytes a figure: the means over images are divided once, and the squared
    deviations taken from the mean over all ranks. Batch size and number of ranks change the order of these sums only.
    """

    def __init__(self) -> None:
        self._sums: list[Tensor] = []  # for each batch [figures, B], over the draws
        self._draws: list[Tensor] = []  # for each batch [B]

    def add(self, batch: int, figures: Float[Tensor, "figures b"], weights: Float[Tensor, "b"]) -> None:
        """Adds one draw of a batch of images.

        Args:
            batch: its number; that of the same images is the same at every draw, and new ones come in order.
            weights: 1, or 0 for images that do not count.
        """
        figures, weights = figures.double().cpu(), weights.double().cpu()
        if batch == len(self._sums):
            self._sums.append(torch.zeros_like(figures))
            self._draws.append(torch.zeros_like(weights))
        self._sums[batch] += torch.where(weights > 0, figures, 0)
        self._draws[batch] += weights

    def estimates(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> tuple[list[Estimate], int]:
        """The mean of each figure over the images of all ranks, and the number of images. Collective.

        The standard error is s / sqrt(n), with s^2 the variance over the n images (divisor n - 1) of an image's mean
        over its draws. It covers which images were drawn and what their draws leave open, not the training.

        Raises:
            ValueError: no image counts.
        """
        draws = torch.cat(self._draws)
        counted = draws > 0
        means = torch.cat(self._sums, dim=1)[:, counted] / draws[counted]
        count, *totals = sum_over_ranks(torch.cat([counted.sum().double()[None], means.sum(dim=1)])).tolist()
        if not count:
            raise ValueError("no image is left to evaluate: all of them are damaged")
        values = [total / count for total in totals]
        deviations = means - torch.tensor(values, dtype=torch.float64)[:, None]
        squares = sum_over_ranks(deviations.square().sum(dim=1)).tolist()
        errors = [math.sqrt(square / (count - 1) / count) if count > 1 else None for square in squares]
        return [Estimate(*each) for each in zip(values, errors, strict=True)], int(count)
