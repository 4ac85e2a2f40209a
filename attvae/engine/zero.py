"""The ZeRO engine: DeepSpeed behind the engine protocol. The only importer of deepspeed.

Every DeepSpeed default that matters is written out: several have changed between releases.
"""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attvae.engine.batch import BatchPlan
from attvae.engine.config import EngineConfig
from attvae.engine.plain import restore_by_parameter
from attvae.engine.protocol import MicroLoss, RestoredState, StepResult
from attvae.engine.rendezvous import World
from attvae.optim.adamax import Adamax


def deepspeed_config(config: EngineConfig, batch: BatchPlan, ranks: int, *, clip_norm: float | None) -> dict[str, Any]:
    """The DeepSpeed configuration of a run, all of it."""
    return {
        "train_batch_size": batch.micro_batch * batch.accumulation * ranks,
        "train_micro_batch_size_per_gpu": batch.micro_batch,
        "gradient_accumulation_steps": batch.accumulation,
        "gradient_clipping": clip_norm or 0.0,
        "zero_optimization": {
            "stage": config.stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_scatter": True,
            "round_robin_gradients": False,
        },
        # The optimizer is ours: element-wise, so any partition of the parameters gives the same update.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "torch_autocast": {"enabled": config.precision == "bf16", "dtype": "bfloat16"},
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        "steps_per_print": None,
        "wall_clock_breakdown": False,
    }


class ZeroEngine:
    def __init__(
        self,
        module: nn.Module,
        optimizer: Adamax,
        world: World,
        config: EngineConfig,
        *,
        batch: BatchPlan,
        clip_norm: float | None,
        restored: RestoredState | None = None,
        updates: int = 0,
    ) -> None:
        deepspeed = _import_deepspeed(world.device)
        self.world = world
        self._module = module
        self._optimizer = optimizer
        self._partitioned = config.stage > 0
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            config=deepspeed_config(config, batch, world.size, clip_norm=clip_norm),
            dist_init_required=False,
        )
        if restored is not None:
            self._restore(restored)
        optimizer.updates = updates

    def _restore(self, restored: RestoredState) -> None:
        if not self._partitioned:
            restore_by_parameter(self._module, self._optimizer, restored)
            return
        from deepspeed.utils import safe_set_full_optimizer_state

        # DeepSpeed links parameters to optimizer states when they first exist, and can set only what is linked.
        self._optimizer.create_state()
        self._engine.optimizer._lazy_init_hp_params_optimizer_state()
        for name, p in self._module.named_parameters():
            for key in Adamax.STATE:
                safe_set_full_optimizer_state(p, restored(key, name).to(self.world.device), key)

    @property
    def updates(self) -> int:
        return self._optimizer.updates

    def train_step(self, micro_losses: Sequence[MicroLoss], lr: float) -> StepResult:
        self._optimizer.set_lr(lr)
        unpartitioned_norm: float | None = None
        for micro_loss in micro_losses:
            self._engine.backward(micro_loss(self._engine))
            if not self._partitioned and self._engine.is_gradient_accumulation_boundary():
                # Stage 0 in fp32 keeps no norm of its own.
                gradients = [p.grad for p in self._module.parameters() if p.grad is not None]
                unpartitioned_norm = float(nn.utils.get_total_norm(gradients))
            self._engine.step()
        self._average_buffers()
        norm = self._engine.get_global_grad_norm() if unpartitioned_norm is None else unpartitioned_norm
        return StepResult(float(norm))

    def _average_buffers(self) -> None:
        """Moving statistics see each rank's own images: their mean over the ranks is everybody's."""
        buffers = [b for b in self._module.buffers() if b.is_floating_point()]
        if self.world.size == 1 or not buffers:
            return
        mean = self.world.sum(torch.cat([b.flatten() for b in buffers])) / self.world.size
        for b, part in zip(buffers, mean.split([b.numel() for b in buffers]), strict=True):
            b.copy_(part.view_as(b))

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        for name, p in self._module.named_parameters():
            yield name, p.detach()

    def optimizer_state(self, key: str) -> Iterator[tuple[str, Tensor]]:
        if not self._partitioned:
            for name, p in self._module.named_parameters():
                yield name, self._optimizer.state[p][key]
            return
        from deepspeed.utils import safe_get_full_optimizer_state

        for name, p in self._module.named_parameters():
            yield name, safe_get_full_optimizer_state(p, key)

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        return self._module.named_buffers()


def _import_deepspeed(device: torch.device) -> Any:
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists on it even without a launcher
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed 0.19 still calls collectives under the names that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if device.type == "cpu":
        # A shared-memory all-reduce that is compiled for 45 s at first use; gloo does without.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)
    return deepspeed
