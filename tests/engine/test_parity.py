"""The engines agree: plain torch against DeepSpeed's ZeRO stages, for any ranks and accumulation."""

from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from spawn import run_on_ranks

from attvae import seeding
from attvae.config import load
from attvae.data.loader import Batch, train_batches
from attvae.data.manifest import Manifest
from attvae.engine import rendezvous
from attvae.engine.batch import divide
from attvae.engine.plain import PlainEngine
from attvae.engine.zero import ZeroEngine
from attvae.model.vae import DeepVAE
from attvae.objective import training_loss
from attvae.optim.adamax import Adamax
from attvae.seeding import Purpose

STEPS, GLOBAL_BATCH, CLIP_NORM = 20, 24, 30.0  # the first gradients are above this norm, the last ones below

Steps = list[tuple[float, float]]
"""(loss, gradient norm) of each step"""

Case = tuple[str, int, int]
"""engine, ZeRO stage, micro-batch"""

ON_RANKS: dict[int, list[Case]] = {
    1: [("plain", 0, 24), ("plain", 0, 6), ("zero", 0, 24), ("zero", 1, 24), ("zero", 2, 6)],
    2: [("zero", 0, 12), ("zero", 1, 6), ("zero", 2, 12)],
}


def run_cases(digits: str, cases: list[Case]) -> list[Steps]:
    world = rendezvous.join()
    try:
        return [steps(world, digits, *case) for case in cases]
    finally:
        rendezvous.leave()


def steps(world: rendezvous.World, digits: str, name: str, stage: int, micro_batch: int) -> Steps:
    """20 updates of the tiny model on the digits, from the same start."""
    cfg = load(Path("configs/test/tiny.yaml"), [f"data.path={digits}", f"engine.name={name}", f"engine.stage={stage}"])
    manifest = Manifest.read(cfg.data.path)
    torch.manual_seed(0)
    model = DeepVAE(cfg.model, manifest.spec)
    optimizer = Adamax(model.parameters(), cfg.optim)
    batch = divide(GLOBAL_BATCH, world.size, micro_batch)
    if name == "plain":
        engine = PlainEngine(model, optimizer, world, cfg.engine, clip_norm=CLIP_NORM)
    else:
        engine = ZeroEngine(model, optimizer, world, cfg.engine, batch=batch, clip_norm=CLIP_NORM)
    batches = train_batches(manifest, cfg.data, 0, 0, batch.micro_batch, world.rank, world.size)
    losses: list[torch.Tensor] = []

    def micro_loss(micro: Batch, forward: torch.nn.Module) -> torch.Tensor:
        places = [(int(p), 0) for p in micro.positions]
        elbo = forward(micro.x, seeding.latent_noise(0, Purpose.LATENT, places, model.latent_shapes))
        loss = training_loss(elbo.nll_nats, elbo.kl_nats, beta=0.5)
        losses.append(loss.detach())
        return loss

    result: Steps = []
    for _ in range(STEPS):
        losses.clear()
        micros = islice(batches, batch.accumulation)
        grad_norm = engine.train_step([partial(micro_loss, micro) for micro in micros], 1e-2).grad_norm
        result.append((float(world.sum(torch.stack(losses).mean())) / world.size, grad_norm))
    return result


@pytest.fixture(scope="module")
def found(digits: Path) -> dict[tuple[int, Case], list[Steps]]:
    """The steps that each rank saw, by number of ranks and case."""
    answers = {ranks: run_on_ranks(run_cases, ranks, str(digits), cases) for ranks, cases in ON_RANKS.items()}
    return {
        (ranks, case): [answer[i] for answer in answers[ranks]]
        for ranks, cases in ON_RANKS.items()
        for i, case in enumerate(cases)
    }


@pytest.mark.parametrize(("ranks", "case"), [(ranks, case) for ranks, cases in ON_RANKS.items() for case in cases])
def test_engines_agree(found: dict[tuple[int, Case], list[Steps]], ranks: int, case: Case) -> None:
    """Losses within 1e-5 and gradient norms within 1e-4 of the plain engine with the whole batch at once."""
    reference = found[1, ("plain", 0, GLOBAL_BATCH)][0]
    assert reference[0][1] > CLIP_NORM > reference[-1][1], "both sides of the clipping must be met"
    for steps_of_rank in found[ranks, case]:
        for (loss, norm), (expected_loss, expected_norm) in zip(steps_of_rank, reference, strict=True):
            assert loss == pytest.approx(expected_loss, rel=1e-5)
            assert norm == pytest.approx(expected_norm, rel=1e-4)
