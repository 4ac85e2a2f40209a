"""Independent Bernoulli pixels, parametrised by logits."""

import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor


def log_prob(x: Float[Tensor, "b c h w"], logits: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    """Log probability in nats of pixels in {0, 1}, summed over an image."""
    return (x * logits - F.softplus(logits)).sum(dim=(1, 2, 3))


def mean(logits: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Of each pixel: the probability of a one."""
    return logits.sigmoid()


def sample(logits: Float[Tensor, "b c h w"], u: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    """Pixels in {0, 1} that belong to uniform u in [0, 1)."""
    return (u < logits.sigmoid()).byte()
