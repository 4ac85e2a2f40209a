"""Which updates are skipped: those whose gradient is not finite, or spikes."""

import math
from dataclasses import asdict, dataclass
from typing import Any

WARMUP = 20
"""Norms that are seen before any is called a spike."""

DECAY = 0.99


@dataclass
class GradientGuard:
    """Compares each gradient norm with the running geometric mean of those before.

    A spike enters the mean as the limit that it broke: whatever level the gradients move to, the mean follows, so no
    limit blocks every update for ever. All ranks see the same norms, hence decide alike.
    """

    limit: float | None
    """Multiple of the running norm above which a gradient is a spike; None: only what is not finite is skipped."""

    mean_log_norm: float = 0.0
    norms: int = 0
    """Finite norms seen."""

    skipped: int = 0
    """Updates skipped since the start of training."""

    skipped_in_a_row: int = 0

    def admits(self, norm: float) -> bool:
        """Whether the update with a gradient of this 2-norm is applied. Once per update."""
        spike = False
        if math.isfinite(norm):
            log_norm = math.log(max(norm, 1e-30))
            if self.limit is not None and self.norms >= WARMUP:
                log_limit = self.mean_log_norm + math.log(self.limit)
                spike, log_norm = log_norm > log_limit, min(log_norm, log_limit)
            decay = min(DECAY, self.norms / (self.norms + 1))  # the plain mean at first
            self.mean_log_norm = decay * self.mean_log_norm + (1 - decay) * log_norm
            self.norms += 1
        admitted = math.isfinite(norm) and not spike
        self.skipped += not admitted
        self.skipped_in_a_row = 0 if admitted else self.skipped_in_a_row + 1
        return admitted

    def overflowed(self) -> None:
        """An update that the search for a loss scale has skipped: no fault of the gradient."""
        self.skipped += 1

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, for JSON."""
        state = asdict(self)
        del state["limit"]
        return state

    @classmethod
    def continued(cls, limit: float | None, state: dict[str, Any]) -> "GradientGuard":
        """The guard with the state that a checkpoint has kept."""
        return cls(limit, **state)
