"""What every optimizer here has in common: an exponential moving average (EMA) of the weights, and its own step count.

The EMA is one more optimizer state: ZeRO partitions it like a moment, a skipped step leaves it alone, and a
checkpoint gathers it by the parameter's name. The step count lives in the parameter group, so that a state is
nothing but tensors of the parameter's shape. Updates are element-wise, hence right on any partition of the parameters.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from attvae.optim.config import OptimConfig


class EmaOptimizer(torch.optim.Optimizer, ABC):
    """After update t of the weights w: ema = d ema + (1-d) w, with d = min(ema_decay, (1 + t) / (10 + t)), so that a
    short run's average is not its start.
    """

    MOMENTS: ClassVar[tuple[str, str]]
    """The algorithm's own states."""

    FUSED: ClassVar[bool] = False
    """Whether an update passes over the memory once, not once for each operation."""

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], config: OptimConfig, **settings: float
    ) -> None:
        """
        Args:
            params: parameters, or groups of them, each with its own values of `settings`.
            settings: the algorithm's coefficients beside those that all have.
        """
        common = {"beta1": config.beta1, "beta2": config.beta2, "eps": config.eps, "ema_decay": config.ema_decay}
        super().__init__(params, {"lr": 0.0, "updates": 0, **common, **settings})
        self._clip_factor = 1.0

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the states, all of the parameter's shape and in float32."""
        return (*self.MOMENTS, "ema")

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

    def clip(self, norm: float, limit: float | None) -> None:
        """What the next step clips: gradients whose 2-norm together is `norm` are scaled down to the limit, if any.

        The scaling is part of the update, which spares a pass over the memory; it may leave the gradients scaled.
        """
        self._clip_factor = 1.0 if limit is None else min(1.0, limit / (norm + 1e-6))  # as torch and DeepSpeed do

    def create_state(self, params: Iterable[Tensor] | None = None) -> None:
        """Creates what state the parameters lack: zero moments, and the weights as their average.

        Args:
            params: by default those of the groups; ZeRO-3 keeps its partitions elsewhere.
        """
        for p in [p for group in self.param_groups for p in group["params"]] if params is None else params:
            if not self.state[p]:
                master = p.detach().float()
                self.state[p] = {name: torch.zeros_like(master) for name in self.MOMENTS}
                self.state[p]["ema"] = master.clone()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "the engine computes gradients"
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:  # ZeRO-3 empties the groups that are not in turn
                continue
            self.create_state(params)
            group["updates"] += 1
            t = group["updates"]
            decay = min(group["ema_decay"], (1 + t) / (10 + t))
            self._apply(params, group, t, 1 - decay)

    def _apply(self, params: list[Tensor], group: dict[str, Any], t: int, average_rate: float) -> None:
        """Update t of the parameters, of their moments and of their averages, which move by the rate to the weights."""
        # A GPU takes all parameters in one kernel; elementary operations on a CPU want one in its cache.
        at_once = self.FUSED or params[0].device.type == "cuda"
        for batch in [params] if at_once else [[p] for p in params]:
            if self._clip_factor < 1:
                torch._foreach_mul_(gradients(batch), self._clip_factor)
            self._update(batch, group, t)
            torch._foreach_lerp_(self.tensors(batch, "ema"), batch, average_rate)

    @abstractmethod
    def _update(self, params: list[Tensor], group: dict[str, Any], t: int) -> None:
        """The algorithm's update t of the parameters and of their moments; the gradients stay as they are."""

    def tensors(self, params: Iterable[Tensor], name: str) -> list[Tensor]:
        """A state of each of the parameters."""
        return [self.state[p][name] for p in params]


def gradients(params: Iterable[Tensor]) -> list[Tensor]:
    """The gradients of parameters that have one."""
    return [p.grad for p in params if p.grad is not None]
