"""What is special about the update in C: its bits, its layouts, its threads, and where there is no compiler."""

import numpy as np
import pytest
import torch
from torch import Tensor

from attvae.optim import compiled_adamax
from attvae.optim.adamax import Adamax
from attvae.optim.choose import choose
from attvae.optim.compiled_adamax import CompiledAdamax, why_not
from attvae.optim.config import OptimConfig

CPU = torch.device("cpu")
compiles = pytest.mark.skipif(bool(why_not()), reason=str(why_not()))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def updated(kind: type[Adamax], params: list[Tensor], grads: list[list[Tensor]], config: OptimConfig) -> Adamax:
    optimizer = kind(params, config)
    optimizer.set_lr(0.1)
    for now in grads:
        for p, g in zip(params, now, strict=True):
            p.grad = g
        optimizer.clip(2.0, 1.5)
        optimizer.step()
    return optimizer


@compiles
def test_every_bit_is_that_of_numpy() -> None:
    """Each operation rounded by itself in float32, in the order of the formulas."""
    f, size = np.float32, 1003
    config = OptimConfig(l2=0.01, ema_decay=0.1)
    w = normal(size)
    weights, mean, maximum = w.numpy().copy(), np.zeros(size, f), np.zeros(size, f)
    average = weights.copy()
    optimizer = CompiledAdamax([w], config)
    optimizer.set_lr(0.1)
    for t in range(1, 6):
        g = normal(size, seed=t)
        w.grad = g
        optimizer.clip(40.0, 30.0)
        optimizer.step()
        gradient = f(30.0 / (40.0 + 1e-6)) * g.numpy() + f(0.02) * weights
        mean = mean + f(1 - 0.9) * (gradient - mean)
        maximum = np.maximum(f(0.999) * maximum, np.abs(gradient))
        weights = weights - f(0.1 / (1 - 0.9**t)) * mean / (maximum + f(1e-3))
        rate = f(1 - 0.1)  # (1 + t) / (10 + t) is above 0.1 from the first update on
        average = weights - (f(1) - rate) * (weights - average)
        assert np.array_equal(w.numpy(), weights)
    assert np.array_equal(optimizer.state[w]["exp_avg"].numpy(), mean)
    assert np.array_equal(optimizer.state[w]["exp_inf"].numpy(), maximum)
    assert np.array_equal(optimizer.state[w]["ema"].numpy(), average)


@compiles
def test_the_threads_change_no_bit() -> None:
    """Of 5 tensors, some smaller than the number of threads."""
    sizes = (100_001, 1, 70_000, 2, 17)
    grads = [[normal(n, seed=10 * t + n % 7) for n in sizes] for t in range(1, 4)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            params = [normal(n, seed=n % 5) for n in sizes]
            updated(CompiledAdamax, params, grads, OptimConfig())
            results.append(torch.cat(params))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


@compiles
def test_a_graph_that_kept_the_weights_refuses_them() -> None:
    """As after an update by torch."""
    p = normal(5).requires_grad_()
    p.grad = normal(5, seed=1)
    for optimizer in (torch.optim.Adamax([p], foreach=False), CompiledAdamax([p], OptimConfig())):
        loss = (p * p).sum()
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    (average,) = optimizer.tensors([p], "ema")  # type: ignore[attr-defined]
    before = average._version
    optimizer.step()
    assert average._version > before


@compiles
def test_any_layout() -> None:
    """Channels last, a gradient of another layout, a strided view, nothing at all: as torch's operations have it."""

    def params() -> list[Tensor]:
        last = normal(4, 3, 5, 5).to(memory_format=torch.channels_last)
        return [last, last.clone(), normal(6, 8)[:, ::2], normal(0), normal(2, 2)]

    grads = [[normal(*p.shape, seed=t) for p in params()] for t in range(1, 4)]
    for now in grads:
        now[0] = now[0].to(memory_format=torch.channels_last)
    ours, expected = params(), params()
    config = OptimConfig(l2=0.1)
    copies = [[g.clone() for g in now] for now in grads]
    optimizer, reference = updated(CompiledAdamax, ours, grads, config), updated(Adamax, expected, copies, config)
    for p, q in zip(ours, expected, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        for name in optimizer.states:
            torch.testing.assert_close(optimizer.state[p][name], reference.state[q][name], rtol=1e-5, atol=1e-6)


@compiles
def test_what_is_not_a_number_stays_so() -> None:
    w = normal(40)
    grad = normal(40, seed=1)
    grad[7] = torch.nan
    optimizer = updated(CompiledAdamax, [w], [[grad]], OptimConfig())
    assert w.isnan().nonzero().tolist() == [[7]]
    for name in optimizer.states:
        assert optimizer.state[w][name].isnan().nonzero().tolist() == [[7]]


@compiles
def test_maxima_that_are_not_numbers_stay_so() -> None:
    """As torch's operations have it; one that is infinite, too."""
    results = []
    for kind in (CompiledAdamax, Adamax):
        w = normal(40)
        optimizer = kind([w], OptimConfig())
        optimizer.create_state()
        optimizer.state[w]["exp_inf"][[3, 5]] = torch.tensor([torch.nan, torch.inf])
        optimizer.set_lr(0.1)
        w.grad = normal(40, seed=1)
        optimizer.step()
        results.append([w, *(optimizer.state[w][name] for name in optimizer.states)])
    ours, expected = results
    assert expected[2].isnan().nonzero().tolist() == [[3]]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@compiles
def test_it_is_the_choice_on_the_cpu() -> None:
    for config in (OptimConfig(), OptimConfig(fused="compiled")):
        optimizer, why = choose([normal(3)], config, CPU)
        assert type(optimizer) is CompiledAdamax
        assert "compiled on this host" in why


def test_a_gpu_takes_all_tensors_at_once() -> None:
    optimizer, why = choose([normal(3)], OptimConfig(), torch.device("cuda"))
    assert type(optimizer) is Adamax
    assert "torch's operations on cuda" in why
    with pytest.raises(ValueError, match=r"optim.fused=compiled runs on CPUs, not on cuda: use optim.fused=auto"):
        choose([normal(3)], OptimConfig(fused="compiled"), torch.device("cuda"))


def test_without_a_working_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_adamax, "_compiled", lambda: "there is no C compiler cc")
    optimizer, why = choose([normal(3)], OptimConfig(), CPU)
    assert type(optimizer) is Adamax
    assert "there is no C compiler cc" in why
    with pytest.raises(ValueError, match=r"optim.fused=compiled: .*install gcc, name a compiler in CC, or use"):
        choose([normal(3)], OptimConfig(fused="compiled"), CPU)
