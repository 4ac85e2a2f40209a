"""AdamW by torch's fused kernels, on the CPU and on GPUs."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from attvae.optim.adamw import AdamW
from attvae.optim.ema import gradients


class TorchAdamW(AdamW):
    """The same update in one pass over the memory."""

    FUSED = True

    def _update(self, params: list[Tensor], group: dict[str, Any], t: int) -> None:
        m, v = (self.tensors(params, name) for name in self.MOMENTS)
        adamw(
            params,
            gradients(params),
            m,
            v,
            [],
            # The kernels count the step themselves, in a tensor for each parameter.
            list(torch.full((len(params),), t - 1.0, device=params[0].device).unbind()),
            fused=True,
            amsgrad=False,
            beta1=group["beta1"],
            beta2=group["beta2"],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
