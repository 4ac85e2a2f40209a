"""The engine and the optimizer that a configuration asks for."""

import sys
from typing import Any

import torch

from attvae.checkpoint import Checkpoint
from attvae.config import RunConfig
from attvae.engine.batch import BatchPlan
from attvae.engine.guard import GradientGuard
from attvae.engine.plain import PlainEngine
from attvae.engine.protocol import Engine
from attvae.engine.rendezvous import World
from attvae.engine.zero import ZeroEngine
from attvae.model.official import l2_coefficients
from attvae.model.vae import DeepVAE
from attvae.optim.choose import choose
from attvae.optim.config import OptimConfig

DTYPES = {"fp32": torch.float32, "autocast": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_engine(
    cfg: RunConfig, model: DeepVAE, world: World, batch: BatchPlan, resumed: Checkpoint | None = None
) -> Engine:
    """The engine around a model whose parameters are already those to start from. Collective.

    Args:
        resumed: the checkpoint whose optimizer states, updates and guard go on.

    Raises:
        ValueError: the optimizer, or the implementation of depth-wise attention, does not run on the device.
    """
    updated_on = torch.device("cpu") if cfg.engine.offload_optimizer else world.device
    optimizer, why = choose(parameter_groups(model, cfg.optim), cfg.optim, updated_on)
    if len(set(world.gather(type(optimizer).__name__))) > 1:  # they round differently, and copies would drift apart
        by_torch = cfg.optim.model_copy(update={"fused": "none"})
        optimizer, _ = choose(parameter_groups(model, cfg.optim), by_torch, updated_on)
        why = "Adamax: ours, in torch's operations, slower than compiled: some hosts have no C compiler"
    attention = model.depth_attention_by(DTYPES[cfg.engine.precision])
    if world.rank == 0:
        for line in filter(None, (why, attention)):
            print(f"attvae: {line}", file=sys.stderr)
    clip_norm = cfg.train.clip_norm
    guard = GradientGuard.continued(cfg.train.spike_limit, resumed.state.get("guard", {}) if resumed else {})
    restored = resumed.tensor if resumed else None
    updates = int(resumed.state["updates"]) if resumed else 0
    match cfg.engine.name:
        case "plain":
            return PlainEngine(
                model,
                optimizer,
                world,
                cfg.engine,
                clip_norm=clip_norm,
                guard=guard,
                restored=restored,
                updates=updates,
            )
        case "zero":
            return ZeroEngine(
                model,
                optimizer,
                world,
                cfg.engine,
                batch=batch,
                clip_norm=clip_norm,
                guard=guard,
                restored=restored,
                updates=updates,
            )


def parameter_groups(model: DeepVAE, optim: OptimConfig) -> list[dict[str, Any]]:
    """The parameters, by the coefficient of their L2 penalty."""
    if optim.l2 != "published":
        return [{"params": list(model.parameters())}]
    coefficients = l2_coefficients(model)
    return [
        {"params": [p for name, p in model.named_parameters() if coefficients[name] == l2], "l2": l2}
        for l2 in sorted(set(coefficients.values()))
    ]
