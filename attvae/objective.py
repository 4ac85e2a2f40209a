"""The maths of the training objective and of its figures: pure functions, in nats unless the name says otherwise.

Shapes: B images, L latent layers, K importance samples.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def nelbo_nats(nll_nats: Float[Tensor, "b"], kl_nats: Float[Tensor, "l b"]) -> Float[Tensor, "b"]:
    """Negative evidence lower bound: -E_q log p(x|z) + sum_l KL_l, the bound that the paper minimises."""
    return nll_nats + kl_nats.sum(dim=0)


def training_loss(
    nll_nats: Float[Tensor, "b"],
    kl_nats: Float[Tensor, "l b"],
    beta: float,
    weights: Float[Tensor, "b"] | None = None,
    *,
    free_bits_nats: float = 0.0,
    balance_kl: bool = False,
    layer_sizes: Sequence[int] | None = None,
) -> Float[Tensor, ""]:
    """Mean over the batch of nll + beta * KL; beta < 1 warms the KL up (paper, training details).

    Args:
        weights: of the images in all means over the batch, 0 for those that do not count; None for 1 each.
        free_bits_nats: KL that each layer has for nothing (`free_bits`), 0 for none.
        balance_kl: while beta < 1, weigh the layers' KL by `balancing_weights`; the bound itself is never balanced.
        layer_sizes: latents of each layer, which these weights take into account; None for layers of one size.
    """
    if weights is None:
        weights = torch.ones_like(nll_nats)
    penalty_LB = free_bits(kl_nats, weights, free_bits_nats) if free_bits_nats > 0 else kl_nats
    if balance_kl and beta < 1:
        penalty_LB = balancing_weights(kl_nats, weights, layer_sizes)[:, None] * penalty_LB
    return weighted_mean(nll_nats + beta * penalty_LB.sum(dim=0), weights)


def weighted_mean(x: Float[Tensor, "*l b"], weights: Float[Tensor, "b"]) -> Float[Tensor, "*l"]:
    """The mean over the images that count; 0 where none does."""
    return (weights * x).sum(dim=-1) / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)


def free_bits(kl_nats: Float[Tensor, "l b"], weights: Float[Tensor, "b"], nats: float) -> Float[Tensor, "l b"]:
    """max(nats, mean over the batch of KL_l) for each layer l (Kingma et al. 2016, the objective with free bits).

    Given as one value per image, whose mean over the batch is that maximum. A layer below it has no gradient. The mean
    is that of the images at hand: it depends on how a batch is cut into micro-batches.
    """
    return torch.where(weighted_mean(kl_nats, weights)[:, None] < nats, torch.full_like(kl_nats, nats), kl_nats)


def balancing_weights(
    kl_nats: Float[Tensor, "l b"], weights: Float[Tensor, "b"], layer_sizes: Sequence[int] | None = None
) -> Float[Tensor, "l"]:
    """gamma_l = L (E[KL_l] / s_l) / sum_k E[KL_k] / s_k, a constant for the gradient (Vahdat & Kautz 2020).

    E is the mean over the batch, s_l the size of layer l; the mean weight is 1. A layer that hardly tells anything is
    hardly held back.
    """
    mean_L = weighted_mean(kl_nats.detach(), weights)
    if layer_sizes is not None:
        mean_L = mean_L / mean_L.new_tensor([size / min(layer_sizes) for size in layer_sizes])
    return len(mean_L) * mean_L / mean_L.sum().clamp_min(torch.finfo(mean_L.dtype).tiny)


def importance_weighted_nll_nats(log_weights: Float[Tensor, "k b"]) -> Float[Tensor, "b"]:
    """-log (1/K) sum_k w_k for log w = log p(x, z) - log q(z|x) (Burda et al. 2016, eq. 8)."""
    return math.log(log_weights.shape[0]) - torch.logsumexp(log_weights, dim=0)


def bits_per_dim(nats: float, dimensions: int) -> float:
    """Nats per image as bits per value of the image."""
    return nats / (dimensions * math.log(2))
