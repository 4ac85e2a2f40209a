"""The noise of evaluations and samples: the same for all runs, and wherever a model is evaluated."""

from collections.abc import Iterable

import torch
from torch import Tensor

from attvae import seeding
from attvae.model.vae import DeepVAE
from attvae.seeding import Purpose

EVALUATION_SEED = 0
"""Binarisations and latent noise of evaluations are the same for all runs, whatever seed they train with."""

_SAMPLES_FROM = 32
"""The bit of a place's minor number from which on it counts importance samples; below it, draws."""
_PRIORS, _PIXELS = 0, 1  # a sample's noise for its latents, and for its pixels


def with_evaluation_noise(
    model: DeepVAE, x: Tensor, ids: Tensor, draw: int, device: torch.device
) -> tuple[Tensor, list[Tensor]]:
    """The images and the noise that belongs to (sample id, draw), on the device."""
    return x.to(device), evaluation_noise(model, ids, draw, device)


def evaluation_noise(
    model: DeepVAE, ids: Tensor, draw: int, device: torch.device, seed: int = EVALUATION_SEED, sample: int = 0
) -> list[Tensor]:
    """The noise that belongs to (seed, sample id, draw), on the device.

    Args:
        sample: which importance sample of that draw; the first one's noise is that of the draw itself.
    """
    places = [(int(i), draw + (sample << _SAMPLES_FROM)) for i in ids]
    noise = seeding.latent_noise(seed, Purpose.EVALUATE, places, model.latent_shapes)
    return [eps.to(device) for eps in noise]


def sampling_noise(model: DeepVAE, indices: Iterable[int], seed: int) -> tuple[list[Tensor], Tensor]:
    """What `DeepVAE.sample` takes for the samples of these indices: noise of latents and of pixels, on the CPU."""
    places = [(i, _PRIORS) for i in indices]
    noise = seeding.latent_noise(seed, Purpose.SAMPLE, places, model.latent_shapes)
    pixels = [(i, _PIXELS) for i, _ in places]
    return noise, seeding.pixel_noise(seed, Purpose.SAMPLE, pixels, model.pixel_noise_shape)
