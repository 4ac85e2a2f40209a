"""Diagonal Gaussians of the latents: bounded parameters, log density, KL divergence (paper, section 3.3)."""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

SoftClamp = Literal["published", "unit_slope"]

MEAN_LIMIT = 5.0
MIN_STDDEV = 0.01


class Gaussian(NamedTuple):
    """Independent normals; mean and stddev broadcast to [B, Z, h, w]."""

    mean: Tensor
    stddev: Tensor

    def sample(self, noise: Float[Tensor, "b z h w"]) -> Float[Tensor, "b z h w"]:
        """The draw that belongs to standard normal noise."""
        return torch.addcmul(self.mean, self.stddev, noise)

    def log_prob(self, z: Float[Tensor, "b z h w"]) -> Float[Tensor, "b"]:
        """Log density in nats, summed over all but the batch."""
        whitened = (z - self.mean) / self.stddev
        return (-0.5 * whitened.square() - self.stddev.log() - 0.5 * math.log(2 * math.pi)).sum(dim=(1, 2, 3))


def standard_normal(like: Tensor) -> Gaussian:
    """N(0, 1), broadcast; dtype and device of `like`."""
    return Gaussian(like.new_zeros(1), like.new_ones(1))


def kl(q: Gaussian, p: Gaussian) -> Float[Tensor, "b"]:
    """KL(q || p) in nats, in closed form, summed over all but the batch."""
    ratio = q.stddev / p.stddev
    shift = (q.mean - p.mean) / p.stddev
    return (0.5 * (ratio.square() + shift.square() - 1) - ratio.log()).sum(dim=(1, 2, 3))


def bounded(
    raw_mean: Float[Tensor, "*shape"],
    raw_log_stddev: Float[Tensor, "*shape"],
    low: float,
    high: float,
    soft_clamp: SoftClamp,
) -> Gaussian:
    """The Gaussian of a head's raw outputs; low and high limit the log of its stddev."""
    return Gaussian(
        bound_mean(raw_mean, soft_clamp), bound_log_stddev(raw_log_stddev, low, high, soft_clamp).exp() + MIN_STDDEV
    )


def bound_mean(raw: Tensor, soft_clamp: SoftClamp) -> Tensor:
    """Into (-5, 5). `published` has slope 1/2 at 0 (the authors' code), `unit_slope` 1."""
    return _tanh_bound(raw, MEAN_LIMIT, soft_clamp)


def bound_log_stddev(raw: Tensor, low: float, high: float, soft_clamp: SoftClamp) -> Tensor:
    """Into (low, high).

    `published`: tanh with slope 1/2 at 0 for symmetric limits; a smoothstep for others, flat outside the limits.
    `unit_slope`: the identity near 0, squashed by tanh on either side to its own limit, flat nowhere.
    """
    if abs(low) == abs(high):
        return _tanh_bound(raw, high, soft_clamp)
    match soft_clamp:
        case "published":
            t = ((raw - low) / (high - low)).clamp(0, 1)
            return low + (high - low) * t.square() * (3 - 2 * t)
        case "unit_slope":
            limit = torch.where(raw > 0, high, low).to(raw.dtype)
            return limit * (raw / limit).tanh()


def _tanh_bound(raw: Tensor, limit: float, soft_clamp: SoftClamp) -> Tensor:
    divisor = 2 * limit if soft_clamp == "published" else limit
    return limit * (raw / divisor).tanh()
