import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attvae.optim.adamax import Adamax
from attvae.optim.compiled_adamax import CompiledAdamax, why_not
from attvae.optim.config import OptimConfig

UNITS = np.load(Path(__file__).parents[1] / "golden" / "units.npz", allow_pickle=False)
STATES = ("exp_avg", "exp_inf", "ema")
both = pytest.mark.parametrize(
    "kind", [Adamax, pytest.param(CompiledAdamax, marks=pytest.mark.skipif(bool(why_not()), reason=str(why_not())))]
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def update(optimizer: torch.optim.Optimizer, params: list[Tensor], grads: list[Tensor]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    optimizer.step()


def adamax(kind: type[Adamax], params: list[Tensor], config: OptimConfig, lr: float) -> Adamax:
    optimizer = kind(params, config)
    optimizer.set_lr(lr)
    return optimizer


@both
def test_against_the_authors(kind: type[Adamax]) -> None:
    """Their beta1, beta2 and eps are the defaults."""
    w = torch.tensor(UNITS["adamax.w0"])
    optimizer = adamax(kind, [w], OptimConfig(), float(UNITS["adamax.lr"]))
    for t, (grad, expected) in enumerate(zip(UNITS["adamax.grads"], UNITS["adamax.w_after"], strict=True), start=1):
        update(optimizer, [w], [torch.tensor(grad)])
        assert optimizer.updates == t
        np.testing.assert_allclose(w.numpy(), expected, rtol=1e-5)


@both
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_against_torch(kind: type[Adamax], l2: float) -> None:
    """With a vanishing eps, which the two place differently, they are one algorithm; torch's decay is of w^2 / 2."""
    config = OptimConfig(beta1=0.8, beta2=0.95, eps=1e-30, l2=l2)
    ours, theirs = normal(3, 7), normal(3, 7)
    optimizer = adamax(kind, [ours], config, 0.02)
    reference = torch.optim.Adamax([theirs], lr=0.02, betas=(0.8, 0.95), eps=1e-30, weight_decay=2 * l2)
    for t in range(30):
        grad = normal(3, 7, seed=t + 1)
        update(optimizer, [ours], [grad])
        update(reference, [theirs], [grad])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(optimizer.state[ours]["exp_avg"], reference.state[theirs]["exp_avg"])
    torch.testing.assert_close(optimizer.state[ours]["exp_inf"], reference.state[theirs]["exp_inf"])


@both
def test_clipping_against_torch(kind: type[Adamax]) -> None:
    """Before the penalty is added; gradients below the limit stay as they are."""
    config = OptimConfig(beta1=0.8, beta2=0.95, eps=1e-30, l2=0.1)
    ours, theirs = ([normal(3, 7), normal(11, seed=1)] for _ in range(2))
    optimizer = adamax(kind, ours, config, 0.02)
    reference = torch.optim.Adamax(theirs, lr=0.02, betas=(0.8, 0.95), eps=1e-30, weight_decay=0.2)
    clipped = 0
    for t in range(30):
        grads = [(1 + t % 4) * normal(*p.shape, seed=10 * t + i) for i, p in enumerate(ours)]
        for p, q, g in zip(ours, theirs, grads, strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        norm = float(torch.nn.utils.clip_grad_norm_(theirs, 12.0))
        clipped += norm > 12.0
        optimizer.clip(norm, 12.0)
        optimizer.step()
        reference.step()
    assert 0 < clipped < 30
    for p, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(optimizer.state[p]["exp_avg"], reference.state[expected]["exp_avg"])


@both
def test_without_decay_the_average_is_the_weights(kind: type[Adamax]) -> None:
    w = normal(50)
    optimizer = adamax(kind, [w], OptimConfig(ema_decay=0.0), 10.0)
    for t in range(3):
        update(optimizer, [w], [normal(50, seed=t + 1)])
        assert torch.equal(optimizer.state[w]["ema"], w)


@both
def test_l2_is_the_penalty_that_autograd_sees(kind: type[Adamax]) -> None:
    slope, l2 = normal(9, seed=1), 0.05
    explicit, built_in = normal(9), normal(9)
    penalised = adamax(kind, [explicit.requires_grad_()], OptimConfig(), 0.1)
    decayed = adamax(kind, [built_in.requires_grad_()], OptimConfig(l2=l2), 0.1)
    for _ in range(10):
        penalised.zero_grad()
        decayed.zero_grad()
        ((slope * explicit).sum() + l2 * (explicit**2).sum()).backward()
        (slope * built_in).sum().backward()
        penalised.step()
        decayed.step()
    torch.testing.assert_close(built_in, explicit)
    assert built_in.grad is not None
    torch.testing.assert_close(built_in.grad, slope)  # clipping and logging see the gradient without the penalty


@both
def test_ema_of_a_straight_path(kind: type[Adamax]) -> None:
    """A constant gradient moves w by c at each update; a constant decay d then lags by c d (1 - d^t) / (1 - d)."""
    d, lr, grad = 0.18, 0.01, torch.tensor([2.0, -0.5])  # d is below (1 + t) / (10 + t) from the first update on
    config = OptimConfig(ema_decay=d)
    c = -lr * grad / (grad.abs() + config.eps)
    w0 = torch.tensor([1.0, 3.0])
    w = w0.clone()
    optimizer = adamax(kind, [w], config, lr)
    for t in range(1, 21):
        update(optimizer, [w], [grad])
        torch.testing.assert_close(w, w0 + t * c)
        lag = c * d * (1 - d**t) / (1 - d)
        torch.testing.assert_close(optimizer.state[w]["ema"], w - lag)


@both
def test_ema_forgets_the_start_of_a_short_run(kind: type[Adamax]) -> None:
    """After one jump from w0 to w1 the start keeps the weight prod (1 + k) / (10 + k) = (t + 1)! 10! / (t + 10)!."""
    w = torch.zeros(1)
    optimizer = adamax(kind, [w], OptimConfig(ema_decay=0.9999), 1.0)
    update(optimizer, [w], [torch.ones(1)])
    w1 = w.item()
    optimizer.set_lr(0.0)
    for t in range(1, 31):
        start = math.factorial(t + 1) * math.factorial(10) / math.factorial(t + 10)
        assert optimizer.state[w]["ema"].item() == pytest.approx(w1 * (1 - start), rel=1e-5)
        update(optimizer, [w], [torch.zeros(1)])
    assert w.item() == w1


@both
def test_ema_keeps_to_the_configured_decay(kind: type[Adamax]) -> None:
    """From t = 8 on (1 + t) / (10 + t) exceeds a half, so the distance halves at each update."""
    w = torch.zeros(1)
    optimizer = adamax(kind, [w], OptimConfig(ema_decay=0.5), 0.0)
    for _ in range(8):
        update(optimizer, [w], [torch.zeros(1)])
    w += 1.0
    for t in range(1, 11):
        update(optimizer, [w], [torch.zeros(1)])
        assert optimizer.state[w]["ema"].item() == pytest.approx(1 - 0.5**t, rel=1e-5)


@both
@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=6), st.sampled_from([0.0, 0.1]))
def test_any_partition_of_the_parameters_gives_the_same_update(kind: type[Adamax], cuts: list[int], l2: float) -> None:
    """ZeRO cuts the flattened parameters where it likes."""

    def cut(x: Tensor) -> list[Tensor]:
        return [piece.clone() for piece in torch.tensor_split(x, sorted(cuts))]

    config = OptimConfig(l2=l2)
    whole, pieces = normal(40), cut(normal(40))
    optimizer, partitioned = adamax(kind, [whole], config, 0.1), adamax(kind, pieces, config, 0.1)
    for t in range(3):
        grad = normal(40, seed=t + 1)
        update(optimizer, [whole], [grad])
        update(partitioned, pieces, cut(grad))
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=1e-6, atol=1e-7)
    for name in STATES:
        state = torch.cat([partitioned.state[p][name] for p in pieces])
        torch.testing.assert_close(state, optimizer.state[whole][name], rtol=1e-6, atol=1e-7)


@both
def test_restored_state_and_count_continue_as_if_never_stopped(kind: type[Adamax]) -> None:
    w, grads = normal(5), [normal(5, seed=t + 1) for t in range(6)]
    optimizer = adamax(kind, [w], OptimConfig(), 0.1)
    for grad in grads[:3]:
        update(optimizer, [w], [grad])
    continued = w.clone()
    second = adamax(kind, [continued], OptimConfig(), 0.1)
    second.create_state()
    for name in STATES:
        second.state[continued][name].copy_(optimizer.state[w][name])
    second.updates = optimizer.updates
    for grad in grads[3:]:
        update(optimizer, [w], [grad])
        update(second, [continued], [grad])
    assert torch.equal(continued, w)
    assert all(torch.equal(second.state[continued][name], optimizer.state[w][name]) for name in STATES)


@both
def test_the_state_of_a_new_parameter(kind: type[Adamax]) -> None:
    w = normal(5)
    optimizer = kind([w], OptimConfig())
    optimizer.create_state()
    state = optimizer.state[w]
    assert set(state) == set(STATES)
    assert torch.equal(state["ema"], w)
    assert state["ema"].data_ptr() != w.data_ptr()
    assert not state["exp_avg"].any()
    assert not state["exp_inf"].any()
