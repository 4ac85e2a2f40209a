"""The plain engine: torch alone, DistributedDataParallel on several ranks. The numerical reference for the others."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attvae.engine.config import EngineConfig
from attvae.engine.guard import GradientGuard
from attvae.engine.moving_statistics import MovingStatistics
from attvae.engine.protocol import MicroLoss, RestoredState, StepResult
from attvae.engine.rendezvous import World
from attvae.optim.ema import EmaOptimizer


class PlainEngine:
    def __init__(
        self,
        module: nn.Module,
        optimizer: EmaOptimizer,
        world: World,
        config: EngineConfig,
        *,
        clip_norm: float | None,
        guard: GradientGuard | None = None,
        restored: RestoredState | None = None,
        updates: int = 0,
    ) -> None:
        self.world = world
        self.guard = guard or GradientGuard(limit=None)
        self._module = module
        self._optimizer = optimizer
        self._autocast = config.precision == "autocast"
        self._clip_norm = clip_norm
        self._statistics = MovingStatistics(module)
        if config.compile:
            module.compile()
        self._ddp = DistributedDataParallel(module, forward_sync_buffers=False) if world.size > 1 else None
        optimizer.create_state()
        if restored is not None:
            self.restore(restored, updates, self.guard)

    def restore(self, restored: RestoredState, updates: int, guard: GradientGuard) -> None:
        restore_parameters(self._module, self._optimizer, restored)
        restore_buffers(self._module, restored)
        self._optimizer.updates = updates
        self.guard = guard

    @property
    def updates(self) -> int:
        return self._optimizer.updates

    @property
    def optimizer_states(self) -> tuple[str, ...]:
        return self._optimizer.states

    def train_step(self, micro_losses: Sequence[MicroLoss], lr: float) -> StepResult:
        self._optimizer.set_lr(lr)
        self._optimizer.zero_grad(set_to_none=True)
        self._statistics.remember()
        for i, micro_loss in enumerate(micro_losses):
            last = i == len(micro_losses) - 1
            with nullcontext() if last or self._ddp is None else self._ddp.no_sync():
                self.world.phases.enter("forward")
                with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self._autocast):
                    loss = micro_loss(self._ddp or self._module)
                self.world.phases.enter("backward")
                (loss / len(micro_losses)).backward()
        self.world.phases.enter("step")
        norm = gradient_norm(self._module, self.world)
        applied = self.guard.admits(norm)
        if applied:
            self._optimizer.clip(norm, self._clip_norm)
            self._optimizer.step()
            self._statistics.average(self.world)
        else:
            self._statistics.restore()
        return StepResult(norm, applied)

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        for name, p in self._module.named_parameters():
            yield name, p.detach()

    def optimizer_state(self, key: str) -> Iterator[tuple[str, Tensor]]:
        for name, p in self._module.named_parameters():
            yield name, self._optimizer.state[p][key]

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        return self._module.named_buffers()


def gradient_norm(module: nn.Module, world: World) -> float:
    """2-norm of all gradients together. Collective: it is the same to the last bit on all ranks."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return world.agreed(float(nn.utils.get_total_norm(gradients)))


@torch.no_grad()
def restore_parameters(module: nn.Module, optimizer: EmaOptimizer, restored: RestoredState) -> None:
    """Fills the parameters, and the state of an optimizer that holds these very parameters."""
    for name, p in module.named_parameters():
        p.copy_(restored("parameters", name))
        for key in optimizer.states:
            optimizer.state[p][key].copy_(restored(key, name))


@torch.no_grad()
def restore_buffers(module: nn.Module, restored: RestoredState) -> None:
    for name, buffer in module.named_buffers():
        buffer.copy_(restored("buffers", name))
