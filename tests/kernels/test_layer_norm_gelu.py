"""x + gelu(layer_norm(x)) in C against torch's own functions in float64."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attvae import compiled_c
from attvae.kernels.layer_norm_gelu import compiled
from attvae.model.layers import LayerNormGelu

compiles = pytest.mark.skipif(isinstance(compiled.library(), str), reason=str(compiled.library()))
EPS = 1e-5
ORDERS = pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["planes", "pixels"])
SHAPES = [(1, 1, 1, 1), (2, 1, 3, 4), (2, 5, 3, 3), (3, 16, 1, 1), (1, 33, 1, 9), (2, 48, 7, 5), (2, 56, 17, 16)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(x: Tensor) -> list[Tensor]:
    """x, weight, bias."""
    c = x.shape[1]
    given = x.detach(), 1 + 0.5 * normal(c, seed=1), 0.5 * normal(c, seed=2)
    return [each.requires_grad_() for each in given]


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return compiled.layer_norm_gelu(x, weight, bias, EPS)


def torchs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    y = F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, EPS).permute(0, 3, 1, 2)
    return x + F.gelu(y, approximate="tanh")


def with_gradients(function: Callable[..., Tensor], leaves: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    out = function(*leaves)
    return [out, *torch.autograd.grad(out, leaves, upstream.to(out.dtype))]


def assert_as_torchs(leaves: Sequence[Tensor], upstream: Tensor) -> None:
    """In float32: what the rounding of each operation leaves, of the parameters' gradients after a sum over pixels."""
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found, expected = with_gradients(ours, leaves, upstream), with_gradients(torchs, exact, upstream)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-5, atol=2e-5)


@compiles
@pytest.mark.parametrize("shape", SHAPES)
@ORDERS
def test_any_sizes(shape: tuple[int, ...], order: torch.memory_format) -> None:
    assert_as_torchs(inputs(normal(*shape).contiguous(memory_format=order)), normal(*shape, seed=3))


@compiles
@pytest.mark.parametrize("size", [1e-4, 1e-2, 30.0, 1e4])
@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_any_magnitude(size: float, offset: float) -> None:
    """Variances far below eps and far above it; GELU from its flat to its straight part."""
    x, weight, bias = inputs(size * (normal(2, 20, 3, 4) + offset))
    leaves = [x, (6 * weight.detach()).requires_grad_(), bias]
    upstream = normal(2, 20, 3, 4, seed=3)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    near = with_gradients(torchs, leaves, upstream)
    for one, torch32, other in zip(
        with_gradients(ours, leaves, upstream), near, with_gradients(torchs, exact, upstream), strict=True
    ):
        error, theirs = (one - other).norm(), (torch32 - other).norm()
        assert error <= 2 * theirs + 1e-7 * other.norm()


@compiles
def test_a_part_of_the_channels_is_read_where_it_lies() -> None:
    whole = normal(2, 24, 5, 4).contiguous(memory_format=torch.channels_last)
    upstream = normal(2, 24, 5, 4, seed=3).contiguous(memory_format=torch.channels_last)[:, 3:20]
    assert compiled._rows(whole[:, 7:]).data_ptr() == whole[:, 7:].data_ptr()
    assert_as_torchs(inputs(whole[:, 7:]), upstream)


@compiles
def test_maps_of_any_strides() -> None:
    upstream = normal(2, 5, 3, 4, seed=3)
    for x in (
        normal(1, 5, 3, 4).expand(2, -1, -1, -1),
        normal(1, 5, 3, 4).contiguous(memory_format=torch.channels_last).expand(2, -1, -1, -1),
        normal(2, 10, 6, 8)[:, ::2, ::2, 1::2],
        normal(2, 5, 4, 3).transpose(2, 3),
        normal(2, 5, 1, 1).expand(-1, -1, 3, 4),
    ):
        assert_as_torchs(inputs(x), upstream)


@compiles
@pytest.mark.parametrize(
    "upstream",
    [
        torch.ones(()).expand(2, 5, 3, 4),
        normal(2, 1, 3, 1).expand(2, 5, 3, 4),
        normal(1, 5, 3, 4).contiguous(memory_format=torch.channels_last).expand(2, 5, 3, 4),
        normal(2, 10, 6, 4)[:, ::2, 1::2],
    ],
    ids=["one number", "broadcast", "one sample", "strided"],
)
def test_gradients_of_any_strides(upstream: Tensor) -> None:
    assert_as_torchs(inputs(normal(2, 5, 3, 4).contiguous(memory_format=torch.channels_last)), upstream)


@compiles
@pytest.mark.parametrize("wanted", [[0], [1], [2], [0, 2]])
def test_gradients_of_some_inputs(wanted: list[int]) -> None:
    leaves, upstream = inputs(normal(2, 5, 3, 4)), normal(2, 5, 3, 4, seed=3)
    expected = with_gradients(ours, leaves, upstream)[1:]
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(i in wanted)
    found = torch.autograd.grad(ours(*leaves), [leaves[i] for i in wanted], upstream)
    assert all(torch.equal(one, expected[i]) for one, i in zip(found, wanted, strict=True))


@compiles
def test_recomputed_and_used_twice() -> None:
    leaves = inputs(normal(2, 5, 3, 4))

    def twice(function: Callable[..., Tensor]) -> list[Tensor]:
        return [*torch.autograd.grad(function(function(*leaves), *leaves[1:]).square().sum(), leaves)]

    kept = twice(ours)
    again = twice(lambda *given: checkpoint(ours, *given, use_reentrant=False))
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))
    torch.testing.assert_close(kept, twice(torchs), rtol=1e-4, atol=1e-4)


@compiles
def test_what_is_not_finite_stays_where_it_is() -> None:
    """As torch has it: at its pixel, and in all pixels where a parameter is not finite."""
    x, weight, bias = (leaf.detach() for leaf in inputs(normal(2, 20, 3, 4)))
    x[0, 2, 1, 1], x[1, 3, 0, 2], x[1, 4, 2, 2] = torch.inf, torch.nan, -torch.inf
    weight[5], bias[6], bias[7], bias[8] = torch.nan, torch.inf, -torch.inf, 1e4
    leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]
    upstream = normal(2, 20, 3, 4, seed=3)
    torch.testing.assert_close(ours(*leaves), torchs(*leaves), equal_nan=True, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        with_gradients(ours, leaves, upstream)[1:], with_gradients(torchs, leaves, upstream)[1:], strict=True
    ):
        assert torch.equal(one.isnan(), other.isnan())


@compiles
def test_the_same_bits_with_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parameters' gradients are sums over 1,190 pixels."""
    monkeypatch.setattr(compiled_c, "GRAIN", 1)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(with_gradients(ours, inputs(normal(2, 20, 35, 17)), normal(2, 20, 35, 17, seed=3)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for others in found[1:] for one, other in zip(found[0], others, strict=True))


@compiles
def test_second_derivatives_are_an_error() -> None:
    leaves = inputs(normal(2, 5, 3, 4))
    (gradient,) = torch.autograd.grad(ours(*leaves).square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


@compiles
def test_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = inputs(normal(2, 5, 3, 4))
    assert compiled.runs_on(*leaves)
    for i in range(3):
        for other in (leaves[i].double(), leaves[i].bfloat16(), leaves[i].to("meta")):
            assert not compiled.runs_on(*leaves[:i], other, *leaves[i + 1 :])
    assert not compiled.runs_on(leaves[0][:, :4], *leaves[1:])
    assert not compiled.runs_on(leaves[0][0], *leaves[1:])
    with torch.autocast("cpu", torch.bfloat16):
        assert not compiled.runs_on(*leaves)
    monkeypatch.setattr(compiled, "library", lambda: "there is no C compiler cc")
    assert not compiled.runs_on(*leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.double, torch.bfloat16])
def test_the_layer_in_any_precision(dtype: torch.dtype) -> None:
    layer = LayerNormGelu(5).to(dtype)
    x = normal(2, 5, 3, 4).to(dtype)
    found = layer(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, torchs(x, layer.weight, layer.bias))


def test_torch_compile_gets_torch_operations() -> None:
    layer, x = LayerNormGelu(5), normal(2, 5, 3, 4).requires_grad_()
    leaves = [x, *layer.parameters()]

    def both(module: Callable[[Tensor], Tensor]) -> Sequence[Tensor]:
        return with_gradients(lambda x, *_: module(x), leaves, normal(2, 5, 3, 4, seed=3))

    compiled_layer = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(both(compiled_layer), both(layer), rtol=1e-5, atol=1e-5)
