"""The ZeRO engine: DeepSpeed behind the engine protocol. The only importer of deepspeed."""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attvae.engine.batch import BatchPlan
from attvae.engine.config import EngineConfig
from attvae.engine.deepspeed_config import deepspeed_config
from attvae.engine.guard import GradientGuard
from attvae.engine.moving_statistics import MovingStatistics
from attvae.engine.plain import gradient_norm, restore_buffers, restore_parameters
from attvae.engine.protocol import MicroLoss, RestoredState, StepResult
from attvae.engine.refused_imports import refused_imports
from attvae.engine.rendezvous import World
from attvae.optim.ema import EmaOptimizer


class ZeroEngine:
    """In stage 3 a parameter is whole only while its module's `forward` runs; elsewhere it is empty."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: EmaOptimizer,
        world: World,
        config: EngineConfig,
        *,
        batch: BatchPlan,
        clip_norm: float | None,
        guard: GradientGuard | None = None,
        restored: RestoredState | None = None,
        updates: int = 0,
    ) -> None:
        deepspeed = import_deepspeed(world.device)
        self.world = world
        self.guard = guard or GradientGuard(limit=None)
        self._module = module
        self._optimizer = optimizer
        self._stage = config.stage
        self._clip_norm = clip_norm
        self._has_masters = config.precision in ("bf16", "fp16")
        self._statistics = MovingStatistics(module)
        self._decision: StepResult | None = None
        if config.compile:
            module.compile()
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=deepspeed_config(config, batch, world.size),
            dist_init_required=False,
        )
        self._create_state()
        self._watch_norms()
        if restored is not None:
            self.restore(restored, updates, self.guard)

    def _create_state(self) -> None:
        match self._stage:
            case 0:
                self._optimizer.create_state()
            case 1 | 2:
                self._optimizer.create_state()
                # DeepSpeed links parameters to optimizer states when they first exist, and can set only what is linked.
                self._engine.optimizer._lazy_init_hp_params_optimizer_state()
            case 3:
                self._optimizer.create_state(self._engine.optimizer.fp32_partitioned_groups_flat)

    def restore(self, restored: RestoredState, updates: int, guard: GradientGuard) -> None:
        match self._stage:
            case 0:
                restore_parameters(self._module, self._optimizer, restored)
            case 1 | 2:
                self._restore_flat(restored)
            case 3:
                self._restore_slices(restored)
        restore_buffers(self._module, restored)
        self._optimizer.updates = updates
        self.guard = guard

    def _restore_flat(self, restored: RestoredState) -> None:
        """Stages 1 and 2: each rank fills its part of the fp32 masters, from which the ranks make the parameters."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for name, p in self._module.named_parameters():
            safe_set_full_fp32_param(p, restored("parameters", name))
            for key in self._optimizer.states:
                safe_set_full_optimizer_state(p, restored(key, name), key)
        self._engine.optimizer.update_lp_params()

    def _restore_slices(self, restored: RestoredState) -> None:
        """Stage 3: as above, but each rank has a slice of every parameter. The setters of full tensors would fail where
        the ranks do not divide a parameter's size.
        """
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        optimizer = self._engine.optimizer
        optimizer.checkpoint_event_prologue()  # no parameter is whole
        for name, p in self._module.named_parameters():
            safe_set_local_fp32_param(p, self._own_slice(p, restored("parameters", name)))
            for key in self._optimizer.states:
                safe_set_local_optimizer_state(p, self._own_slice(p, restored(key, name)), key)
        for group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        optimizer.checkpoint_event_epilogue()  # the persistent ones are, again

    def _own_slice(self, p: Any, full: Tensor) -> Tensor:
        """This rank's part of a tensor in stage 3: equal parts, the last one padded with zeros."""
        size = p.ds_tensor.numel()
        padded = F.pad(full.flatten(), (0, size * self.world.size - full.numel()))
        return padded[self.world.rank * size :][:size]

    def _watch_norms(self) -> None:
        """Lets the guard decide inside DeepSpeed's optimizer step, the only place where the norm is known.

        A step whose norm is infinite is discarded by DeepSpeed as an overflow, which is what a skipped step needs.
        """
        if self._stage == 0:
            return
        optimizer, infinite = self._engine.optimizer, torch.tensor(torch.inf, device=self.world.device)
        if self._stage == 3:
            from deepspeed.runtime.utils import combine_grad_norm_groups

            norms = optimizer._get_norm_groups
            optimizer._get_norm_groups = lambda: (
                found if self._admits(combine_grad_norm_groups(found := norms())) else [infinite]
            )
        else:
            norm = optimizer.scaled_global_norm
            optimizer.scaled_global_norm = lambda: found if self._admits(found := norm()) else infinite

    def _admits(self, scaled_norm: Tensor) -> bool:
        norm = float(scaled_norm) / float(self._engine.optimizer.loss_scale)
        norm = self.world.agreed(norm if norm >= 0 else torch.nan)  # DeepSpeed writes -1 for what is not finite
        self._decision = StepResult(norm, self.guard.admits(norm))
        self._optimizer.clip(norm, self._clip_norm)
        return self._decision.applied

    @property
    def updates(self) -> int:
        return self._optimizer.updates

    @property
    def optimizer_states(self) -> tuple[str, ...]:
        return self._optimizer.states

    def train_step(self, micro_losses: Sequence[MicroLoss], lr: float) -> StepResult:
        self._optimizer.set_lr(lr)
        self._statistics.remember()
        self._decision = None
        for micro_loss in micro_losses:
            self.world.phases.enter("forward")
            loss = micro_loss(self._engine)
            self.world.phases.enter("backward")
            self._engine.backward(loss)
            if self._engine.is_gradient_accumulation_boundary():
                self.world.phases.enter("step")
                if self._stage == 0:
                    self._decide_unpartitioned()
            self._engine.step()
        result = self._decision
        if result is None:  # DeepSpeed found gradients that are not finite, before their norm
            result = StepResult(torch.inf, False)
            scaler = self._engine.optimizer.loss_scaler
            if scaler.dynamic and scaler.cur_scale > scaler.min_scale:  # fp16: a lower loss scale is tried next
                self.guard.overflowed()
            else:
                self.guard.admits(torch.inf)
        if result.applied:
            self._statistics.average(self.world)
        else:
            self._statistics.restore()
        return result

    def _decide_unpartitioned(self) -> None:
        """Stage 0 in fp32 keeps no norm of its own; without gradients its optimizer rests."""
        norm = gradient_norm(self._module, self.world)
        self._decision = StepResult(norm, self.guard.admits(norm))
        self._optimizer.clip(norm, self._clip_norm)
        if not self._decision.applied:
            self._optimizer.zero_grad(set_to_none=True)

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        if self._stage < 3 and not self._has_masters:
            for name, p in self._module.named_parameters():
                yield name, p.detach()
            return
        from deepspeed.utils import safe_get_full_fp32_param

        for name, p in self._module.named_parameters():
            yield name, safe_get_full_fp32_param(p)

    def optimizer_state(self, key: str) -> Iterator[tuple[str, Tensor]]:
        if self._stage == 0:
            for name, p in self._module.named_parameters():
                yield name, self._optimizer.state[p][key]
            return
        from deepspeed.utils import safe_get_full_optimizer_state

        for name, p in self._module.named_parameters():
            yield name, safe_get_full_optimizer_state(p, key)

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        return self._module.named_buffers()


def import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, without what its import could wait for: to be called before another thread imports mlflow."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it even without a launcher
    with refused_imports("mlflow"):  # which its autotuner takes where it is there: two seconds on each rank
        import deepspeed
    _import_muon()

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed 0.19 still calls collectives under the names that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if device.type == "cpu":
        # A shared-memory all-reduce that is compiled for 45 s at first use; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)
    return deepspeed


def _import_muon() -> None:
    """DeepSpeed's engines import its optimizer Muon, whose functions, which no run of ours calls, are to be compiled:
    torch's compiler takes over a second to be there. So they stay as they are.
    """
    from deepspeed.runtime import compiler

    compiled, compiler.compile = compiler.compile, lambda: lambda function: function
    try:
        import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compiled
