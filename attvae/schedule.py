"""Learning rate and KL weight as pure functions of samples seen: independent of batch size, ranks and resume."""

import math


def warmup_cosine(samples_seen: int, *, warmup: int, total: int, peak: float, floor: float) -> float:
    """Linear from `floor` to `peak` over `warmup` samples, then half a cosine down to `floor` at `total`."""
    if samples_seen < warmup:
        return floor + (peak - floor) * samples_seen / warmup
    progress = min(1.0, (samples_seen - warmup) / max(1, total - warmup))
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def published_lr(
    step: int,
    *,
    steps_per_epoch: int,
    warmup_epochs: int,
    decay_epochs: int,
    restart_epochs: int | None,
    peak: float,
    floor: float,
) -> float:
    """The learning rate of the authors' code: linear warm-up by steps, then a cosine that moves once an epoch.

    Args:
        step: 1 for the first update.
        steps_per_epoch: whole batches in the training set.
        decay_epochs: length of the cosine after the warm-up; the last value is held.
        restart_epochs: None for a single cosine; else the first period of cosines that restart, each twice as long
            (Loshchilov & Hutter 2017); `decay_epochs` then means nothing.
    """
    warmup = warmup_epochs * steps_per_epoch
    if step <= warmup:
        return floor + (peak - floor) * step / warmup
    epoch = step // steps_per_epoch - warmup_epochs
    if restart_epochs is None:
        progress = min(1.0, epoch / decay_epochs)
    else:
        period = restart_epochs
        while epoch >= period:
            epoch, period = epoch - period, 2 * period
        progress = epoch / period
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def kl_weight(samples_seen: int, *, warmup: int, start: float) -> float:
    """The weight beta of the KL: linear from `start` to 1 over `warmup` samples."""
    if samples_seen >= warmup:
        return 1.0
    return start + (1 - start) * samples_seen / warmup


def due(samples_seen: int, interval: int, step: int) -> bool:
    """Whether the step of `step` samples that ended at `samples_seen` crossed a multiple of `interval`."""
    return samples_seen // interval > (samples_seen - step) // interval
