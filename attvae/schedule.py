"""Learning rate and KL weight as pure functions of samples seen: independent of batch size, ranks and resume."""

import math


def warmup_cosine(samples_seen: int, *, warmup: int, total: int, peak: float, floor: float) -> float:
    """Linear from `floor` to `peak` over `warmup` samples, then half a cosine down to `floor` at `total`."""
    if samples_seen < warmup:
        return floor + (peak - floor) * samples_seen / warmup
    progress = min(1.0, (samples_seen - warmup) / max(1, total - warmup))
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def kl_weight(samples_seen: int, *, warmup: int, start: float) -> float:
    """The weight beta of the KL: linear from `start` to 1 over `warmup` samples."""
    if samples_seen >= warmup:
        return 1.0
    return start + (1 - start) * samples_seen / warmup


def due(samples_seen: int, interval: int, step: int) -> bool:
    """Whether the step of `step` samples that ended at `samples_seen` crossed a multiple of `interval`."""
    return samples_seen // interval > (samples_seen - step) // interval
