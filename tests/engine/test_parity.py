"""The engines agree: plain torch against DeepSpeed's ZeRO stages, whatever the ranks, the accumulation, the offloading
and the recomputation. `pytest tests/engine/test_parity.py -m 'slow or not slow' -s` prints the table of docs/engine.md.
"""

from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from spawn import run_on_ranks

from attvae import seeding
from attvae.config import load
from attvae.data.loader import Batch, open_manifest, train_batches
from attvae.engine import rendezvous
from attvae.engine.batch import divide
from attvae.engine.plain import PlainEngine
from attvae.engine.zero import ZeroEngine
from attvae.model.vae import DeepVAE
from attvae.objective import training_loss
from attvae.optim.choose import choose
from attvae.seeding import Purpose

STEPS, GLOBAL_BATCH, CLIP_NORM = 20, 24, 30.0  # the first gradients are above this norm, the last ones below


class Case(NamedTuple):
    engine: str
    ranks: int = 1
    accumulation: int = 1
    options: tuple[str, ...] = ()

    def overrides(self) -> list[str]:
        """`plain` or `stage 0` ... `stage 3`, as dotted overrides; stage 3 leaves no parameter whole."""
        name, _, stage = self.engine.partition(" ")
        engine = ["engine.name=plain"] if name == "plain" else [f"engine.stage={stage}"]
        return [*engine, "engine.persistent_parameters=0", *(f"engine.{option}" for option in self.options)]


ENGINES = ("plain", "stage 0", "stage 1", "stage 2", "stage 3")
RECOMPUTE = ("recompute=[encoder,layers,decoder]",)
OFFLOAD = ("offload_optimizer=true",)
AUTOCAST = ("precision=autocast",)
BF16 = ("precision=bf16",)
REFERENCE = Case("plain")
QUICK = [
    Case("plain", 1, 4, RECOMPUTE),
    Case("stage 0"),
    Case("stage 3", 1, 1, RECOMPUTE),
    Case("stage 3", 1, 1, BF16),
    Case("plain", 2, 4),
    Case("stage 1", 2, 4),
    Case("stage 1", 2, 1, AUTOCAST),
    Case("stage 2", 2),
    Case("stage 3", 2),
]
SLOW = [Case(engine, ranks, accumulation) for engine in ENGINES for ranks in (1, 2) for accumulation in (1, 4)]
SLOW = [case for case in SLOW if case not in (REFERENCE, *QUICK)]
SLOW += [
    Case("stage 1", 1, 1, OFFLOAD),
    Case("plain", 1, 1, AUTOCAST),
    Case("stage 3", 1, 1, AUTOCAST),
    Case("plain", 2, 1, RECOMPUTE),
    Case("stage 2", 2, 4, BF16),
    Case("stage 3", 2, 4, (*OFFLOAD, "offload_parameters=true", *RECOMPUTE)),
]
BOUNDS = {"fp32": (1e-5, 1e-4), "autocast": (5e-3, 0.15), "bf16": (1e-2, 0.25)}
"""Of the relative deviations of losses and gradient norms, by precision."""

Steps = list[tuple[float, float]]
"""(loss, gradient norm) of each step"""


def run_cases(digits: str, cases: list[Case]) -> list[Steps]:
    world = rendezvous.join()
    try:
        return [steps(world, digits, case) for case in cases]
    finally:
        rendezvous.leave()


def steps(world: rendezvous.World, digits: str, case: Case) -> Steps:
    """20 updates of the tiny model on the digits, from the same start."""
    cfg = load(Path("configs/test/tiny.yaml"), [f"data.path={digits}", *case.overrides()])
    manifest = open_manifest(cfg.data)
    torch.manual_seed(0)
    model = DeepVAE(cfg.model, manifest.spec, recompute=cfg.engine.recompute)
    optimizer, _ = choose(model.parameters(), cfg.optim, world.device)
    batch = divide(GLOBAL_BATCH, world.size, GLOBAL_BATCH // case.ranks // case.accumulation)
    if cfg.engine.name == "plain":
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


def found(digits: Path, cases: list[Case]) -> dict[Case, list[Steps]]:
    """The steps that each rank saw."""
    answers: dict[Case, list[Steps]] = {}
    for ranks in (1, 2):
        here = [case for case in cases if case.ranks == ranks]
        for case, *of_ranks in zip(here, *run_on_ranks(run_cases, ranks, str(digits), here), strict=True):
            answers[case] = of_ranks
    return answers


def deviation(steps: Steps, reference: Steps) -> tuple[float, float]:
    """The largest relative deviations of the losses and of the gradient norms."""
    relative = [
        [abs(x - expected) / abs(expected) for x, expected in zip(step, wanted, strict=True)]
        for step, wanted in zip(steps, reference, strict=True)
    ]
    loss, norm = (max(column) for column in zip(*relative, strict=True))
    return loss, norm


def check(digits: Path, cases: list[Case]) -> None:
    """Against the plain engine in fp32 with the whole batch at once."""
    answers = found(digits, [REFERENCE, *cases])
    [reference] = answers[REFERENCE]
    assert reference[0][1] > CLIP_NORM > reference[-1][1], "both sides of the clipping must be met"
    apart = []
    for case, of_ranks in answers.items():
        loss, norm = (max(column) for column in zip(*(deviation(s, reference) for s in of_ranks), strict=True))
        cells = (case.engine, case.ranks, case.accumulation, ", ".join(case.options), f"{loss:.0e}", f"{norm:.0e}")
        print("\n|", " | ".join(map(str, cells)), "|", end="")
        precision = next((p for p in BOUNDS if f"precision={p}" in case.options), "fp32")
        within = loss < BOUNDS[precision][0] and norm < BOUNDS[precision][1]
        took_effect = (loss > BOUNDS["fp32"][0]) == (precision != "fp32")
        if not (within and took_effect):
            apart.append((case, loss, norm))
    assert not apart


def test_engines_agree(digits: Path) -> None:
    check(digits, QUICK)


@pytest.mark.slow
def test_engines_agree_in_the_remaining_cases(digits: Path) -> None:
    check(digits, SLOW)
