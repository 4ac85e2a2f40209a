from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from attvae.schedule import due, kl_weight, published_lr, warmup_cosine

UNITS = np.load(Path(__file__).parent / "golden" / "units.npz", allow_pickle=False)
EPOCH = 312
"""Steps of an epoch of the authors' CIFAR-10 runs."""


def test_learning_rate_against_torch() -> None:
    samples_of_a_step, warmup, total = 100, 40, 200
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.01)
    parts = [
        LinearLR(optimizer, start_factor=0.05, total_iters=warmup),
        CosineAnnealingLR(optimizer, T_max=total - warmup, eta_min=0.05 * 0.01),
    ]
    scheduler = SequentialLR(optimizer, parts, milestones=[warmup])
    for step in range(total + 1):
        lr = warmup_cosine(
            step * samples_of_a_step,
            warmup=warmup * samples_of_a_step,
            total=total * samples_of_a_step,
            peak=0.01,
            floor=0.05 * 0.01,
        )
        assert lr == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9), f"step {step}"
        optimizer.step()
        scheduler.step()


def test_learning_rate_against_the_authors() -> None:
    """Theirs is constant within an epoch after the warm-up, so the two meet where epochs begin."""
    step, lr = UNITS["lr.cosine_warmup.step"], UNITS["lr.cosine_warmup.lr"]
    meet = (step <= 5 * EPOCH) | (step % EPOCH == 0)
    assert meet.sum() > 20
    ours = [warmup_cosine(int(s), warmup=5 * EPOCH, total=400 * EPOCH, peak=0.01, floor=1e-4) for s in step[meet]]
    np.testing.assert_allclose(ours, lr[meet], rtol=1e-5)


@pytest.mark.parametrize(("name", "restart_epochs"), [("cosine_warmup", None), ("cosine_restart_warmup", 300)])
def test_the_published_learning_rate(name: str, restart_epochs: int | None) -> None:
    ours = [
        published_lr(
            int(step),
            steps_per_epoch=EPOCH,
            warmup_epochs=5,
            decay_epochs=395,
            restart_epochs=restart_epochs,
            peak=0.01,
            floor=1e-4,
        )
        for step in UNITS[f"lr.{name}.step"]
    ]
    np.testing.assert_allclose(ours, UNITS[f"lr.{name}.lr"], rtol=1e-5)


def test_learning_rate_without_warmup_and_after_the_end() -> None:
    assert warmup_cosine(0, warmup=0, total=100, peak=1.0, floor=0.1) == 1.0
    assert warmup_cosine(50, warmup=0, total=100, peak=1.0, floor=0.1) == pytest.approx(0.55, rel=1e-14)
    assert warmup_cosine(250, warmup=0, total=100, peak=1.0, floor=0.1) == pytest.approx(0.1, rel=1e-14)
    assert warmup_cosine(10, warmup=10, total=10, peak=1.0, floor=0.1) == 1.0


def test_kl_weight_against_the_authors() -> None:
    ours = [kl_weight(int(epoch), warmup=16, start=0.1) for epoch in UNITS["kl_schedule.epoch"]]
    np.testing.assert_allclose(ours, UNITS["kl_schedule.beta"], rtol=1e-6)


def test_kl_weight_ends() -> None:
    assert kl_weight(0, warmup=10, start=0.25) == 0.25
    assert kl_weight(9, warmup=10, start=0.0) == pytest.approx(0.9, rel=1e-14)
    assert kl_weight(10, warmup=10, start=0.25) == 1.0
    assert kl_weight(0, warmup=0, start=0.25) == 1.0


@given(step=st.integers(1, 50), interval=st.integers(1, 200), steps=st.integers(1, 60))
def test_due_when_the_step_reached_a_multiple(step: int, interval: int, steps: int) -> None:
    multiples = set(range(interval, steps * step + 1, interval))
    for end in range(step, steps * step + 1, step):
        reached = {m for m in multiples if end - step < m <= end}
        assert due(end, interval, step) == bool(reached)
        multiples -= reached
    assert not multiples
