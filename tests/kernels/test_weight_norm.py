"""Weight-normalised kernels by torch's operations and in C, against torch's own in float64."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from attvae import compiled_c
from attvae.kernels.weight_norm import by_torch, compiled
from attvae.model.layers import WeightNormConv2d

Form = Callable[[Tensor, Tensor], Tensor]
compiles = pytest.mark.skipif(isinstance(compiled.library(), str), reason=str(compiled.library()))
FORMS = pytest.mark.parametrize(
    "form", [by_torch.weight_norm, pytest.param(compiled.weight_norm, marks=compiles)], ids=["torch", "C"]
)
SHAPES = [(5, 3, 3, 3), (4, 6, 1, 1), (3, 1, 5, 5), (1, 1, 1, 1), (7, 33, 3, 3), (2, 5, 2, 4), (40, 68, 1, 1)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def leaves(*shape: int) -> tuple[Tensor, Tensor]:
    return normal(*shape).requires_grad_(), normal(shape[0], seed=1).requires_grad_()


def torchs(v: Tensor, log_g: Tensor) -> Tensor:
    return torch._weight_norm(v, log_g.exp()[:, None, None, None], 0)


def assert_as_torchs(form: Form, v: Tensor, log_g: Tensor, upstream: Tensor) -> None:
    exact = v.detach().double().requires_grad_(), log_g.detach().double().requires_grad_()
    found, expected = form(v, log_g), torchs(*exact)
    assert found.is_contiguous(memory_format=torch.channels_last)
    all_found = [found, *torch.autograd.grad(found, (v, log_g), upstream)]
    all_expected = [expected, *torch.autograd.grad(expected, exact, upstream.double())]
    for one, other in zip(all_found, all_expected, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-5, atol=1e-5)


@FORMS
@pytest.mark.parametrize("shape", SHAPES)
def test_any_sizes(form: Form, shape: tuple[int, ...]) -> None:
    assert_as_torchs(form, *leaves(*shape), normal(*shape, seed=2))


@FORMS
@pytest.mark.parametrize(
    "upstream",
    [
        normal(4, 3, 3, 3).contiguous(memory_format=torch.channels_last),
        torch.ones(()).expand(4, 3, 3, 3),
        normal(4, 1, 3, 1).expand(4, 3, 3, 3),
        normal(4, 6, 6, 3)[:, ::2, 1::2],
    ],
    ids=["channels-last", "one number", "broadcast", "strided"],
)
def test_gradients_of_any_strides(form: Form, upstream: Tensor) -> None:
    assert_as_torchs(form, *leaves(4, 3, 3, 3), upstream)


@FORMS
def test_parameters_of_any_strides(form: Form) -> None:
    v = normal(4, 3, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    assert_as_torchs(form, v, normal(8)[::2].requires_grad_(), normal(4, 3, 3, 3, seed=2))
    assert_as_torchs(form, normal(3, 4, 6, 6)[..., ::2, ::2].transpose(0, 1).requires_grad_(), v[:, 0, 0, 0], v)


@FORMS
@pytest.mark.parametrize("wanted", [0, 1])
def test_a_frozen_parameter(form: Form, wanted: int) -> None:
    parameters = leaves(4, 3, 3, 3)
    upstream = normal(4, 3, 3, 3, seed=2)
    expected = torch.autograd.grad(form(*parameters), parameters, upstream)[wanted]
    parameters[1 - wanted].requires_grad_(False)
    assert torch.equal(torch.autograd.grad(form(*parameters), parameters[wanted], upstream)[0], expected)


@FORMS
def test_two_uses_add_up(form: Form) -> None:
    v, log_g = leaves(4, 3, 3, 3)
    once = torch.autograd.grad(form(v, log_g).square().sum(), (v, log_g))
    twice = torch.autograd.grad(form(v, log_g).square().sum() + form(v, log_g).square().sum(), (v, log_g))
    torch.testing.assert_close(twice, tuple(2 * gradient for gradient in once))


@FORMS
def test_a_clamped_norm_is_a_constant(form: Form) -> None:
    """A zero kernel, one below the least norm, one above: as autograd has it."""
    v, log_g = leaves(3, 2, 3, 3)
    v = (v.detach() * torch.tensor([0, 1e-8, 1])[:, None, None, None]).requires_grad_()
    expected = v * (log_g.exp() / v.flatten(1).norm(dim=1).clamp_min(1e-6))[:, None, None, None]
    found, upstream = form(v, log_g), normal(3, 2, 3, 3, seed=2)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(kernel, (v, log_g), upstream) for kernel in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


@FORMS
def test_what_is_not_finite_stays_where_it_is(form: Form) -> None:
    v, log_g = (parameter.detach() for parameter in leaves(5, 2, 3, 3))
    v[1, 0, 1, 2], v[2, 1, 0, 0] = torch.nan, torch.inf
    log_g[3], log_g[4] = torch.nan, torch.inf
    found, expected = form(v, log_g), torchs(v, log_g)
    torch.testing.assert_close(found, expected, equal_nan=True)
    v.requires_grad_(), log_g.requires_grad_()
    upstream = normal(5, 2, 3, 3, seed=2)
    upstream[0, 0, 0, 0] = torch.nan
    found_v, found_log_g = torch.autograd.grad(form(v, log_g), (v, log_g), upstream)
    assert not found_v.flatten(1).isfinite().all(dim=1).any()
    assert not found_log_g.isfinite().any()


def test_the_torch_form_in_double_precision() -> None:
    parameters = [parameter.detach().double().requires_grad_() for parameter in leaves(3, 2, 3, 3)]
    assert torch.autograd.gradcheck(by_torch.weight_norm, parameters)
    torch.testing.assert_close(by_torch.weight_norm(*parameters), torchs(*parameters), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", [3e-4, 1e-2, 1.0, 300.0, 2e4])
def test_the_torch_form_in_half_precision(norm: float) -> None:
    """Gradients of kernels whose squared norm fp16 cannot hold, against autograd in float64 from the same numbers."""
    v = torch.randn(4, 8, 3, 3)
    v = (v / v.flatten(1).norm(dim=1)[:, None, None, None] * norm).half().requires_grad_()
    log_g = torch.full((4,), norm).log().half().requires_grad_()
    gradient = torch.randn(4, 8, 3, 3).half()
    exact = v.detach().double().requires_grad_(), log_g.detach().double().requires_grad_()
    found = torch.autograd.grad(by_torch.weight_norm(v, log_g), (v, log_g), gradient)
    wanted = torch.autograd.grad(torchs(*exact), exact, gradient.double())
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.double() - theirs).norm() < 2e-2 * theirs.norm()


@FORMS
def test_second_derivatives_are_an_error(form: Form) -> None:
    v, log_g = leaves(4, 3, 3, 3)
    (gradient,) = torch.autograd.grad(form(v, log_g).square().sum(), v, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


@compiles
def test_the_same_bits_with_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_c, "GRAIN", 1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            parameters = leaves(7, 33, 3, 3)
            kernel = compiled.weight_norm(*parameters)
            found.append([kernel, *torch.autograd.grad(kernel, parameters, normal(7, 33, 3, 3, seed=2))])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for others in found[1:] for one, other in zip(found[0], others, strict=True))


@compiles
def test_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    v, log_g = leaves(4, 3, 3, 3)
    assert compiled.runs_on(v, log_g)
    assert not compiled.runs_on(v.double(), log_g)
    assert not compiled.runs_on(v, log_g.bfloat16())
    assert not compiled.runs_on(v.to("meta"), log_g)
    assert not compiled.runs_on(v, log_g[:3])
    assert not compiled.runs_on(v[0], log_g[:3])
    with torch.autocast("cpu", torch.bfloat16):
        assert not compiled.runs_on(v, log_g)
    monkeypatch.setattr(compiled, "library", lambda: "there is no C compiler cc")
    assert not compiled.runs_on(v, log_g)


def test_torch_compile_gets_torch_operations() -> None:
    conv, x = WeightNormConv2d(3, 4, 3), normal(2, 3, 5, 5)

    def both(module: Callable[[Tensor], Tensor]) -> Sequence[Tensor]:
        out = module(x)
        return [out, *torch.autograd.grad(out.square().sum(), [*conv.parameters()])]

    compiled_conv = torch.compile(conv, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(both(compiled_conv), both(conv), rtol=1e-5, atol=1e-5)
