"""What only a GPU can do."""

from pathlib import Path

import pytest
import torch
from spawn import run_on_ranks

from attvae.config import load
from attvae.data.loader import open_manifest
from attvae.engine import rendezvous
from attvae.engine.batch import divide
from attvae.engine.zero import ZeroEngine
from attvae.model.vae import DeepVAE
from attvae.optim.choose import choose

pytestmark = pytest.mark.gpu

STEPS = 30


def losses(digits: str, *overrides: str) -> tuple[list[float], int]:
    """The losses of 30 updates on one batch, and how many updates were applied."""
    world = rendezvous.join()
    try:
        assert world.device.type == "cuda"
        cfg = load(Path("configs/test/tiny.yaml"), [f"data.path={digits}", *overrides])
        torch.manual_seed(0)
        model = DeepVAE(cfg.model, open_manifest(cfg.data).spec).to(world.device)
        optimizer, _ = choose(model.parameters(), cfg.optim, world.device)
        engine = ZeroEngine(model, optimizer, world, cfg.engine, batch=divide(24, 1, None), clip_norm=30.0)
        x = torch.randint(0, 2, (24, 1, 8, 8), dtype=torch.uint8, device=world.device)
        noise = [torch.randn(24, *shape, device=world.device) for shape in model.latent_shapes]
        seen: list[float] = []

        def loss(forward: torch.nn.Module) -> torch.Tensor:
            nelbo = forward(x, noise).nelbo_nats.mean()
            seen.append(float(nelbo))
            return nelbo

        for _ in range(STEPS):
            engine.train_step([loss], 1e-3)
        return seen, engine.updates
    finally:
        rendezvous.leave()


@pytest.mark.parametrize("stage", [2, 3])
def test_fp16_finds_its_loss_scale(digits: Path, stage: int) -> None:
    options = (f"engine.stage={stage}", "engine.persistent_parameters=0")
    [(expected, _)] = run_on_ranks(losses, 1, str(digits), *options)
    [(found, updates)] = run_on_ranks(losses, 1, str(digits), *options, "engine.precision=fp16")
    assert updates >= STEPS - 12
    assert found[-1] == pytest.approx(expected[-1], rel=0.1)


def test_a_compiled_model_learns_the_same(digits: Path) -> None:
    """On the CPU it does not: some gradients of torch 2.13's inductor are wrong there."""
    [(expected, _)] = run_on_ranks(losses, 1, str(digits))
    [(found, _)] = run_on_ranks(losses, 1, str(digits), "engine.compile=true")
    assert found == pytest.approx(expected, rel=1e-3)
