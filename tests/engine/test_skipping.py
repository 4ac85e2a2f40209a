"""A gradient that is not finite, or spikes, on one rank: all ranks skip the update and are as they were before."""

from typing import Any

import torch
from spawn import run_on_ranks
from torch import nn

from attvae.engine import rendezvous
from attvae.engine.batch import divide
from attvae.engine.config import EngineConfig
from attvae.engine.guard import WARMUP, GradientGuard
from attvae.engine.plain import PlainEngine
from attvae.engine.protocol import Engine
from attvae.engine.zero import ZeroEngine
from attvae.model.batch_norm import BatchNorm
from attvae.optim.adamax import Adamax
from attvae.optim.config import OptimConfig

ROWS, ACCUMULATION, GOOD_STEPS = 8, 2, WARMUP + 2

CASES: list[dict[str, Any]] = [
    {"name": "plain"},
    {"stage": 0},
    {"stage": 1, "offload_optimizer": True},
    {"stage": 2, "precision": "bf16"},
    {"stage": 3, "precision": "autocast"},
]


def engine_for(world: rendezvous.World, options: dict[str, Any]) -> Engine:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 11), BatchNorm(11), nn.SiLU(), nn.Linear(11, 3))
    optimizer = Adamax([{"params": p} for p in module.parameters()], OptimConfig())  # more than one group
    config = EngineConfig.model_validate({"precision": "fp32", "persistent_parameters": 0} | options)
    guard = GradientGuard(limit=20.0)
    if config.name == "plain":
        return PlainEngine(module, optimizer, world, config, clip_norm=1.0, guard=guard)
    batch = divide(ROWS * ACCUMULATION * world.size, world.size, ROWS)
    return ZeroEngine(module, optimizer, world, config, batch=batch, clip_norm=1.0, guard=guard)


def train(
    world: rendezvous.World, options: dict[str, Any], bad: dict[int, float]
) -> tuple[list[Any], dict[str, Any], list[int]]:
    """What each step gave, every tensor of the engine at the end, (updates, skipped). `bad`: before which good step
    another one comes whose last micro-loss is multiplied so on the last rank.
    """
    engine = engine_for(world, options)

    def step(seed: int, factor: float) -> Any:
        losses = []
        for i in range(ACCUMULATION):
            generator = torch.Generator().manual_seed(seed * 100 + 10 * world.rank + i)
            x = torch.randn(ROWS, 5, generator=generator)
            if factor != 1.0 and i == ACCUMULATION - 1 and world.rank == world.size - 1:
                x[0] *= factor

            def loss(forward: nn.Module, x: torch.Tensor = x) -> torch.Tensor:
                dtype = torch.bfloat16 if options.get("precision") == "bf16" else torch.float32
                return (forward(x.to(dtype)).float() - x[:, :3]).square().mean()

            losses.append(loss)
        return engine.train_step(losses, 1e-2)

    results = []
    for seed in range(GOOD_STEPS):
        if seed in bad:
            results.append(step(1000 + seed, bad[seed]))
        results.append(step(seed, 1.0))
    tensors = {name: t.tolist() for name, t in (*engine.parameters(), *engine.buffers())}
    for key in engine.optimizer_states:
        tensors |= {f"{key}/{name}": t.tolist() for name, t in engine.optimizer_state(key)}
    return results, tensors, [engine.updates, engine.guard.skipped, engine.guard.skipped_in_a_row]


def on_rank(cases: list[dict[str, Any]]) -> list[Any]:
    world = rendezvous.join()
    try:
        return [(train(world, case, {}), train(world, case, {3: float("nan"), WARMUP + 1: 1e6})) for case in cases]
    finally:
        rendezvous.leave()


def test_a_bad_gradient_of_one_rank_changes_nothing_on_any() -> None:
    for of_rank in run_on_ranks(on_rank, 2, CASES):
        for case, (undisturbed, disturbed) in zip(CASES, of_rank, strict=True):
            applied = [result.applied for result in disturbed[0]]
            assert applied == [step not in (3, WARMUP + 2) for step in range(GOOD_STEPS + 2)], case
            assert disturbed[2] == [GOOD_STEPS, 2, 0], case
            assert undisturbed[2] == [GOOD_STEPS, 0, 0], case
            assert [result for result in disturbed[0] if result.applied] == undisturbed[0], case
            assert disturbed[1] == undisturbed[1], case
