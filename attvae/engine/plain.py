"""The plain engine: torch alone, one process. The numerical reference for the others."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from attvae.engine.config import EngineConfig
from attvae.engine.protocol import MicroLoss, RestoredState, StepResult
from attvae.engine.rendezvous import World
from attvae.optim.adamax import Adamax


class PlainEngine:
    def __init__(
        self,
        module: nn.Module,
        optimizer: Adamax,
        world: World,
        config: EngineConfig,
        *,
        clip_norm: float | None,
        restored: RestoredState | None = None,
        updates: int = 0,
    ) -> None:
        if world.size > 1:
            raise ValueError(
                f"engine.name=plain runs in one process, but {world.size} ranks were launched: use engine.name=zero"
            )
        self.world = world
        self._module = module
        self._optimizer = optimizer
        self._autocast = config.precision == "bf16"
        self._clip_norm = clip_norm
        if restored is not None:
            restore_by_parameter(module, optimizer, restored)
        optimizer.updates = updates

    @property
    def updates(self) -> int:
        return self._optimizer.updates

    def train_step(self, micro_losses: Sequence[MicroLoss], lr: float) -> StepResult:
        self._optimizer.zero_grad(set_to_none=True)
        for micro_loss in micro_losses:
            with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self._autocast):
                loss = micro_loss(self._module)
            (loss / len(micro_losses)).backward()
        grad_norm = nn.utils.clip_grad_norm_(self._module.parameters(), self._clip_norm or math.inf)
        self._optimizer.set_lr(lr)
        self._optimizer.step()
        return StepResult(float(grad_norm))

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        for name, p in self._module.named_parameters():
            yield name, p.detach()

    def optimizer_state(self, key: str) -> Iterator[tuple[str, Tensor]]:
        for name, p in self._module.named_parameters():
            yield name, self._optimizer.state[p][key]

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        return self._module.named_buffers()


def restore_by_parameter(module: nn.Module, optimizer: Adamax, restored: RestoredState) -> None:
    """Fills the state of an optimizer that holds the module's own parameters."""
    optimizer.create_state()
    for name, p in module.named_parameters():
        for key in Adamax.STATE:
            optimizer.state[p][key].copy_(restored(key, name))
