"""Adamax (Kingma & Ba 2015, algorithm 2), the paper's optimizer."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from attvae.optim.config import OptimConfig
from attvae.optim.ema import EmaOptimizer, gradients


class Adamax(EmaOptimizer):
    """For update t: m = β1 m + (1-β1) g; u = max(β2 u, |g|); w -= lr / (1 - β1^t) * m / (u + eps).

    g includes the gradient 2 l2 w of the penalty l2 w².
    """

    MOMENTS = ("exp_avg", "exp_inf")

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], config: OptimConfig) -> None:
        """
        Args:
            params: parameters, or groups of them, each with its own `l2`.
        """
        super().__init__(params, config, l2=0.0 if config.l2 == "published" else config.l2)

    def _update(self, params: list[Tensor], group: dict[str, Any], t: int) -> None:
        g = gradients(params)
        if group["l2"]:
            g = [*torch._foreach_add(g, params, alpha=2 * group["l2"])]
        m, u = (self.tensors(params, name) for name in self.MOMENTS)
        torch._foreach_lerp_(m, g, 1 - group["beta1"])
        torch._foreach_mul_(u, group["beta2"])
        torch._foreach_maximum_(u, torch._foreach_abs(g))
        step_size = group["lr"] / (1 - group["beta1"] ** t)
        torch._foreach_addcdiv_(params, m, torch._foreach_add(u, group["eps"]), value=-step_size)
