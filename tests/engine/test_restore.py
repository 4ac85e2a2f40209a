"""An engine in which everything has gone wrong goes back to a checkpoint in place: from there it does, bit for bit,
what it did before it went wrong.
"""

import math
from typing import Any

import pytest
import torch
from spawn import run_on_ranks
from torch import Tensor, nn

from attvae.engine import rendezvous
from attvae.engine.batch import divide
from attvae.engine.config import EngineConfig
from attvae.engine.guard import GradientGuard
from attvae.engine.plain import PlainEngine
from attvae.engine.protocol import Engine, StepResult
from attvae.engine.zero import ZeroEngine
from attvae.model.batch_norm import BatchNorm
from attvae.optim.adamax import Adamax
from attvae.optim.config import OptimConfig

ROWS, ACCUMULATION, SPIKE_LIMIT, LR = 8, 2, 20.0, 1e-2
BEFORE, AFTER, WRONG = range(3), range(3, 7), 100
"""Seeds of the steps before the checkpoint and after it, and the first of those that go wrong."""

OFFLOAD = {"offload_optimizer": True}
ON_ONE_RANK: list[dict[str, Any]] = [
    {"name": "plain"},
    {"stage": 1},
    {"stage": 2, "precision": "bf16"},
    {"stage": 3, "persistent_parameters": 20},
]
ON_TWO_RANKS: list[dict[str, Any]] = [
    {"name": "plain", "precision": "autocast"},
    {"stage": 0},
    {"stage": 1, **OFFLOAD},
    {"stage": 1, "precision": "autocast"},
    {"stage": 2},
    {"stage": 2, "precision": "bf16"},
    {"stage": 3},
    {"stage": 3, "precision": "bf16", "persistent_parameters": 20},
    {"stage": 3, "precision": "autocast", **OFFLOAD, "offload_parameters": True},
]

Tensors = dict[tuple[str, str], Tensor]
"""By kind (`parameters`, `buffers`, an optimizer state) and name."""


def regression() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 11), BatchNorm(11), nn.SiLU(), nn.Linear(11, 3))


def engine_for(world: rendezvous.World, module: nn.Sequential, options: dict[str, Any]) -> Engine:
    optimizer = Adamax([{"params": layer.parameters()} for layer in (module[:2], module[3])], OptimConfig())
    config = EngineConfig.model_validate({"precision": "fp32", "persistent_parameters": 0} | options)
    guard = GradientGuard(SPIKE_LIMIT)
    if config.name == "plain":
        return PlainEngine(module, optimizer, world, config, clip_norm=1.0, guard=guard)
    batch = divide(ROWS * ACCUMULATION * world.size, world.size, ROWS)
    return ZeroEngine(module, optimizer, world, config, batch=batch, clip_norm=1.0, guard=guard)


def step(engine: Engine, seed: int, lr: float) -> StepResult:
    losses = []
    for i in range(ACCUMULATION):
        x = torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(seed * 100 + 10 * engine.world.rank + i))

        def loss(forward: nn.Module, x: Tensor = x) -> Tensor:
            dtype = next(forward.parameters()).dtype
            return (forward(x.to(dtype)).float() - x[:, :3]).square().mean()

        losses.append(loss)
    return engine.train_step(losses, lr)


def tensors(engine: Engine) -> Tensors:
    sources = {"parameters": engine.parameters(), "buffers": engine.buffers()}
    sources |= {key: engine.optimizer_state(key) for key in engine.optimizer_states}
    return {(kind, name): t.detach().clone() for kind, named in sources.items() for name, t in named}


def outcome(engine: Engine) -> dict[str, Any]:
    """What the steps after the checkpoint gave, and all that the engine holds then."""
    results = [step(engine, seed, LR) for seed in AFTER]
    held = {key: t.tolist() for key, t in tensors(engine).items()}
    return {"results": results, "held": held, "updates": engine.updates, "guard": engine.guard.state()}


def train(world: rendezvous.World, options: dict[str, Any]) -> list[dict[str, Any]]:
    """The outcomes before anything goes wrong, after the parameters have, and after the gradients have as well."""
    module = regression()
    engine = engine_for(world, module, options)
    for seed in BEFORE:
        step(engine, seed, LR)
    saved, updates, guard = tensors(engine), engine.updates, engine.guard.state()
    whole = [p.numel() for p in module.parameters()]
    outcomes = [outcome(engine)]
    for more in (0, 2):
        step(engine, WRONG, math.inf)
        assert not any(p.isfinite().all() for _, p in engine.parameters()), "no parameter is sound"
        assert not any(step(engine, WRONG + i, LR).applied for i in range(more)), "nor any gradient"
        engine.restore(lambda kind, name: saved[kind, name], updates, GradientGuard.continued(SPIKE_LIMIT, guard))
        restored = tensors(engine)
        assert all(torch.equal(restored[key], saved[key]) for key in saved)
        assert [p.numel() for p in module.parameters()] == whole, "stage 3 keeps some whole"
        outcomes.append(outcome(engine))
    return outcomes


def on_rank(cases: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    world = rendezvous.join()
    try:
        return [train(world, case) for case in cases]
    finally:
        rendezvous.leave()


@pytest.mark.parametrize(("ranks", "cases"), [(1, ON_ONE_RANK), (2, ON_TWO_RANKS)], ids=["1 rank", "2 ranks"])
def test_what_went_wrong_leaves_no_trace(ranks: int, cases: list[dict[str, Any]]) -> None:
    for of_rank in run_on_ranks(on_rank, ranks, cases):
        for case, (undisturbed, *restored) in zip(cases, of_rank, strict=True):
            assert all(result.applied for result in undisturbed["results"]), case
            assert undisturbed["updates"] == len(BEFORE) + len(AFTER), case
            assert restored == [undisturbed, undisturbed], case
