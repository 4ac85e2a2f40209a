"""Adamax whose state includes an exponential moving average (EMA) of the weights.

The EMA is one more optimizer state: ZeRO partitions it like a moment, a skipped step leaves it alone, and a
checkpoint gathers it by the parameter's name.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from attvae.optim.config import OptimConfig


class Adamax(torch.optim.Optimizer):
    """Adamax (Kingma & Ba 2015, algorithm 2) with EMA.

    For update t: m = β1 m + (1-β1) g; u = max(β2 u, |g|); w -= lr / (1 - β1^t) * m / (u + eps);
    ema = d ema + (1-d) w with d = min(ema_decay, (1 + t) / (10 + t)), so that a short run's average is not its start.
    Element-wise, hence right on any partition of the parameters; t lives in the parameter group.
    """

    STATE = ("exp_avg", "exp_inf", "ema")

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], config: OptimConfig) -> None:
        """
        Args:
            params: parameters, or groups of them, each with its own `l2`.
        """
        defaults = {
            "lr": 0.0,
            "beta1": config.beta1,
            "beta2": config.beta2,
            "eps": config.eps,
            "l2": 0.0 if config.l2 == "published" else config.l2,
            "ema_decay": config.ema_decay,
            "updates": 0,
        }
        super().__init__(params, defaults)

    @property
    def updates(self) -> int:
        """Number of updates applied so far (t)."""
        return int(self.param_groups[0]["updates"])

    @updates.setter
    def updates(self, t: int) -> None:
        for group in self.param_groups:
            group["updates"] = t

    def set_lr(self, lr: float) -> None:
        for group in self.param_groups:
            group["lr"] = lr

    def create_state(self) -> None:
        """Creates the state of every parameter that has none: zero moments, and the weights as their average."""
        for group in self.param_groups:
            for p in group["params"]:
                if not self.state[p]:
                    master = p.detach().float()
                    self.state[p] = {
                        "exp_avg": torch.zeros_like(master),
                        "exp_inf": torch.zeros_like(master),
                        "ema": master.clone(),
                    }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the engine computes gradients"
        self.create_state()
        for group in self.param_groups:
            group["updates"] += 1
            t = group["updates"]
            step_size = group["lr"] / (1 - group["beta1"] ** t)
            decay = min(group["ema_decay"], (1 + t) / (10 + t))
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                g = p.grad
                if group["l2"]:
                    g = g.add(p, alpha=2 * group["l2"])
                m, u, ema = state["exp_avg"], state["exp_inf"], state["ema"]
                m.lerp_(g, 1 - group["beta1"])
                torch.maximum(u.mul_(group["beta2"]), g.abs(), out=u)
                p.addcdiv_(m, u + group["eps"], value=-step_size)
                ema.lerp_(p, 1 - decay)
