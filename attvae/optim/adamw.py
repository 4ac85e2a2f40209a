"""AdamW (Loshchilov & Hutter 2019) in elementary operations of torch."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from attvae.optim.config import OptimConfig
from attvae.optim.ema import EmaOptimizer, gradients


class AdamW(EmaOptimizer):
    """For update t: w -= lr λ w; m = β1 m + (1-β1) g; v = β2 v + (1-β2) g²;
    w -= lr m / (1 - β1^t) / (sqrt(v / (1 - β2^t)) + eps), with λ the decoupled weight decay.
    """

    MOMENTS = ("exp_avg", "exp_avg_sq")

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], config: OptimConfig) -> None:
        """
        Args:
            params: parameters, or groups of them, each with its own `weight_decay`.
        """
        super().__init__(params, config, weight_decay=config.weight_decay)

    def _update(self, params: list[Tensor], group: dict[str, Any], t: int) -> None:
        g = gradients(params)
        m, v = (self.tensors(params, name) for name in self.MOMENTS)
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_lerp_(m, g, 1 - group["beta1"])
        torch._foreach_mul_(v, group["beta2"])
        torch._foreach_addcmul_(v, g, g, value=1 - group["beta2"])
        denominators = torch._foreach_sqrt(v)
        torch._foreach_div_(denominators, (1 - group["beta2"] ** t) ** 0.5)
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_addcdiv_(params, m, denominators, value=-group["lr"] / (1 - group["beta1"] ** t))
