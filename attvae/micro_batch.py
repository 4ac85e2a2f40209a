"""The forward pass of a micro-batch in training: noise by position, bound, loss."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attvae import seeding
from attvae.config import TrainConfig
from attvae.data.loader import Batch
from attvae.data.to_device import Fed
from attvae.evaluation.elbo import Elbo
from attvae.objective import training_loss
from attvae.seeding import Purpose


def noise_of(batch: Batch, seed: int, latent_shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The latent noise of each image, by its place in the global stream: no matter on which rank, or after what."""
    places = [(position, 0) for position in batch.positions.tolist()]
    return seeding.latent_noise(seed, Purpose.LATENT, places, latent_shapes)


def elbo_and_loss(micro: Fed, forward: nn.Module, seed: int, beta: float, train: TrainConfig) -> tuple[Elbo, Tensor]:
    """The bound of each image, and the mean loss of those that count."""
    # Noise inside the model (noise_stddev) follows the position as well, so that a resumed run repeats it.
    torch.manual_seed(seeding.torch_seed(seed, Purpose.MODULE, 1 + int(micro.batch.positions[0])))
    elbo = forward(micro.batch.x, micro.noise)
    weights = micro.batch.weights.to(elbo.nll_nats.device)
    return elbo, training_loss(
        elbo.nll_nats,
        elbo.kl_nats,
        beta,
        weights,
        free_bits_nats=train.free_bits_nats,
        balance_kl=train.balance_kl,
        layer_sizes=[eps[0].numel() for eps in micro.noise],
    )
