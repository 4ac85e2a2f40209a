"""The maths of the training objective and of its figures: pure functions, in nats unless the name says otherwise.

Shapes: B images, L latent layers, K importance samples.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def nelbo_nats(nll_nats: Float[Tensor, "b"], kl_nats: Float[Tensor, "l b"]) -> Float[Tensor, "b"]:
    """Negative evidence lower bound: -E_q log p(x|z) + sum_l KL_l, the bound that the paper minimises."""
    return nll_nats + kl_nats.sum(dim=0)


def training_loss(nll_nats: Float[Tensor, "b"], kl_nats: Float[Tensor, "l b"], beta: float) -> Float[Tensor, ""]:
    """Mean over the batch of nll + beta * KL; beta < 1 warms the KL up (paper, training details)."""
    return (nll_nats + beta * kl_nats.sum(dim=0)).mean()


def importance_weighted_nll_nats(log_weights: Float[Tensor, "k b"]) -> Float[Tensor, "b"]:
    """-log (1/K) sum_k w_k for log w = log p(x, z) - log q(z|x) (Burda et al. 2016, eq. 8)."""
    return math.log(log_weights.shape[0]) - torch.logsumexp(log_weights, dim=0)


def bits_per_dim(nats: float, dimensions: int) -> float:
    """Nats per image as bits per value of the image."""
    return nats / (dimensions * math.log(2))
