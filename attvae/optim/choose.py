"""Which implementation of the configured optimizer runs."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from attvae.optim.adamax import Adamax
from attvae.optim.adamw import AdamW
from attvae.optim.apex_adamw import ApexAdamW
from attvae.optim.compiled_adamax import CompiledAdamax, why_not
from attvae.optim.config import OptimConfig
from attvae.optim.ema import EmaOptimizer
from attvae.optim.torch_adamw import TorchAdamW


def choose(
    params: Iterable[Tensor] | Iterable[dict[str, Any]], config: OptimConfig, device: torch.device
) -> tuple[EmaOptimizer, str]:
    """The optimizer for parameters that are updated on the device, and in a line which one it is and why.

    Raises:
        ValueError: what `fused` asks for is not there, or does not run on the device.
    """
    match config.name, config.fused:
        case "adamax", "none":
            return Adamax(params, config), "Adamax: ours, in torch's operations, since optim.fused=none"
        case "adamax", asked if device.type != "cpu":
            if asked == "compiled":
                raise ValueError(f"optim.fused=compiled runs on CPUs, not on {device.type}: use optim.fused=auto")
            return Adamax(params, config), f"Adamax: ours, in torch's operations on {device.type}, all tensors at once"
        case "adamax", asked:
            if asked == "auto" and (reason := why_not()) is not None:
                return Adamax(params, config), f"Adamax: ours, in torch's operations, slower than compiled: {reason}"
            why = "one pass over the memory, clipping and average included"
            return CompiledAdamax(params, config), f"Adamax: ours, compiled on this host: {why}"
        case _, "none":
            return AdamW(params, config), "AdamW: ours, in torch's operations, since optim.fused=none"
        case _, "apex":
            if device.type != "cuda":
                raise ValueError(f"optim.fused=apex runs on GPUs, not on {device.type}: use optim.fused=auto")
            return ApexAdamW(params, config), "AdamW: apex's FusedAdam, since optim.fused=apex"
        case _, asked:
            why = "optim.fused=torch" if asked == "torch" else "the one fused form that runs on every device"
            return TorchAdamW(params, config), f"AdamW: torch's fused kernel on {device.type}, since {why}"
