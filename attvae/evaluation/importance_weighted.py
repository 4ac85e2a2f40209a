"""The importance-weighted bound, from any number of samples in the memory of one."""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float, Float64
from torch import Tensor


def importance_weighted_nll_nats(log_weights: Iterable[Float[Tensor, "b"]]) -> Float64[Tensor, "b"]:
    """-log (1/K) sum_k w_k of each image, at or above -log p(x) in expectation (Burda et al. 2016, eq. 8).

    Args:
        log_weights: log p(x, z^k) - log q(z^k | x) for k = 1 ... K, one after the other.

    Raises:
        ValueError: there is none.
    """
    log_sum, samples = None, 0
    for log_weight in log_weights:
        log_sum = log_weight.double() if log_sum is None else torch.logaddexp(log_sum, log_weight.double())
        samples += 1
    if log_sum is None:
        raise ValueError("no importance sample: one at least is needed")
    return math.log(samples) - log_sum
