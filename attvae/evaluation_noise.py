"""The noise of evaluations: the same for all runs, and wherever a model is evaluated."""

import torch
from torch import Tensor

from attvae import seeding
from attvae.model.vae import DeepVAE
from attvae.seeding import Purpose

EVALUATION_SEED = 0
"""Binarisations and latent noise of evaluations are the same for all runs, whatever seed they train with."""


def with_evaluation_noise(
    model: DeepVAE, x: Tensor, ids: Tensor, draw: int, device: torch.device
) -> tuple[Tensor, list[Tensor]]:
    """The images and the noise that belongs to (sample id, draw), on the device."""
    places = [(int(i), draw) for i in ids]
    noise = seeding.latent_noise(EVALUATION_SEED, Purpose.EVALUATE, places, model.latent_shapes)
    return x.to(device), [eps.to(device) for eps in noise]
