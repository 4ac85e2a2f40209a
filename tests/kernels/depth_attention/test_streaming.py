"""The streaming form against torch's attention on stacked slots, and against the plain formula."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attvae.kernels.depth_attention import reference
from attvae.kernels.depth_attention.streaming import depth_attention

Slots = list[Tensor]
Attend = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor], float], Tensor]


def torch_attention(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float) -> Tensor:
    return F.scaled_dot_product_attention(
        query.permute(0, 2, 3, 1)[..., None, :],
        torch.stack([*keys]).permute(1, 3, 4, 0, 2),
        torch.stack([*values]).permute(1, 3, 4, 0, 2),
        scale=scale,
    )[..., 0, :].permute(0, 3, 1, 2)


def maps(n: int, b: int = 2, k: int = 3, c: int = 5, h: int = 3, w: int = 4, **kind: object) -> list[Tensor]:
    """A query, n keys, n values."""
    torch.manual_seed(0)
    made = [torch.randn(b, width, h, w).to(**kind) for width in [k] * (n + 1) + [c] * n]  # type: ignore[call-overload]
    return [each.requires_grad_() for each in made]


def of(attend: Attend, leaves: Sequence[Tensor], scale: float = 0.7) -> Tensor:
    n = len(leaves) // 2
    return attend(leaves[0], leaves[1 : n + 1], leaves[n + 1 :], scale)


def assert_as(attend: Attend, leaves: Sequence[Tensor], upstream: Tensor) -> None:
    found, expected = of(depth_attention, leaves), of(attend, leaves)
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(output, leaves, upstream) for output in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 64])
@pytest.mark.parametrize("attend", [torch_attention, reference.depth_attention])
def test_any_number_of_slots(attend: Attend, n: int) -> None:
    leaves = maps(n, dtype=torch.double)
    assert_as(attend, leaves, torch.randn_like(leaves[-1]))


@pytest.mark.parametrize(("b", "k", "c", "h", "w"), [(1, 1, 1, 1, 1), (3, 20, 33, 5, 7), (1, 17, 2, 1, 9)])
def test_odd_sizes(b: int, k: int, c: int, h: int, w: int) -> None:
    leaves = maps(5, b, k, c, h, w)
    assert_as(torch_attention, leaves, torch.randn_like(leaves[-1]))


def test_strided_and_broadcast_inputs() -> None:
    """As in the model: slices of channels-last maps, after a first slot that is the same for all samples."""
    torch.manual_seed(0)
    whole = [torch.randn(2, 12, 4, 5).to(memory_format=torch.channels_last).requires_grad_() for _ in range(4)]
    first = torch.randn(1, 12, 4, 5, requires_grad=True)

    def output(attend: Attend) -> Tensor:
        slots = [first.to(memory_format=torch.channels_last).expand(2, -1, -1, -1), *whole]
        return attend(whole[-1][:, 9:], [slot[:, 7:9] for slot in slots], [slot[:, :7] for slot in slots], 1.0)

    def attend_two(attend: Attend) -> Attend:
        return lambda query, keys, values, scale: attend(query[:, :2], keys, values, scale)

    found, expected = output(attend_two(depth_attention)), output(attend_two(torch_attention))
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)  # as the convolutions take it
    upstream = torch.randn_like(found)
    leaves = (first, *whole)
    gradients = (torch.autograd.grad(out, leaves, upstream) for out in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "upstream",
    [
        torch.ones(()).expand(2, 5, 3, 4),
        torch.randn(2, 1, 3, 1, generator=torch.Generator().manual_seed(1)).expand(2, 5, 3, 4),
        torch.randn(2, 10, 6, 4, generator=torch.Generator().manual_seed(2))[:, ::2, 1::2],
    ],
    ids=["one number", "broadcast", "strided"],
)
def test_strided_and_broadcast_gradients(upstream: Tensor) -> None:
    assert_as(torch_attention, maps(4), upstream)


def test_gradcheck() -> None:
    leaves = maps(3, b=1, c=2, h=1, w=2, dtype=torch.double)
    assert torch.autograd.gradcheck(lambda *each: of(depth_attention, each), leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_round_once(dtype: torch.dtype) -> None:
    """64 slots, where a sum in 16 bits would be wrong in its first digits: against float64, rounded."""
    leaves = maps(64, dtype=dtype)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found, expected = of(depth_attention, leaves), of(torch_attention, exact)
    upstream = torch.randn_like(found)
    tolerance = {"rtol": torch.finfo(dtype).eps, "atol": 1e-4}
    torch.testing.assert_close(found, expected.to(dtype), **tolerance)
    ours = torch.autograd.grad(found, leaves, upstream)
    theirs = torch.autograd.grad(expected, exact, upstream.double())
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other.to(dtype), **tolerance)


def test_autocast_keeps_no_copies_of_the_slots() -> None:
    leaves = maps(6, dtype=torch.bfloat16)
    own = {leaf.untyped_storage().data_ptr() for leaf in leaves}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t), torch.autocast("cpu"):
        assert of(depth_attention, leaves).dtype == torch.bfloat16
    others = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    others = {pointer: size for pointer, size in others.items() if pointer not in own}
    assert sum(others.values()) == 6 * 2 * 3 * 4 * 4  # the probabilities, in float32


@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [4], [0, 4], [1, 3]])
def test_gradients_of_some_inputs(wanted: list[int]) -> None:
    """Query, two keys, two values."""
    leaves = [leaf.detach().requires_grad_(i in wanted) for i, leaf in enumerate(maps(2))]
    upstream = torch.randn_like(leaves[-1])
    chosen = [leaves[i] for i in wanted]
    found, expected = (
        torch.autograd.grad(of(attend, leaves), chosen, upstream) for attend in (depth_attention, torch_attention)
    )
    torch.testing.assert_close(found, expected)


def test_without_gradients() -> None:
    leaves = maps(4)
    with torch.no_grad():
        found = of(depth_attention, leaves)
    assert not found.requires_grad
    torch.testing.assert_close(found, of(torch_attention, leaves).detach())


def test_each_layer_of_a_stack_sees_the_earlier_ones_only() -> None:
    """Layer l attends to slots 0 ... l - 1: its output's gradient is zero for, and does not exist for, later ones."""
    n = 5
    leaves = maps(n)
    query, keys, values = leaves[0], leaves[1 : n + 1], leaves[n + 1 :]
    for layer in range(1, n + 1):
        output = depth_attention(query, keys[:layer], values[:layer])
        gradients = torch.autograd.grad(output.sum(), [*keys, *values], allow_unused=True)
        reached = [gradient is not None and bool(gradient.any()) for gradient in gradients]
        # One slot has the weight 1 whatever its key.
        assert reached == [n < layer and layer > 1 for n in range(5)] + [n < layer for n in range(5)]


def test_compiles_as_one_graph() -> None:
    leaves = maps(3)
    upstream = torch.randn_like(leaves[-1])
    compiled = torch.compile(depth_attention, fullgraph=True, backend="aot_eager")
    found, expected = of(compiled, leaves), of(depth_attention, leaves)
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(out, leaves, upstream) for out in (found, expected))
    torch.testing.assert_close(*gradients)


def test_second_derivatives_are_an_error() -> None:
    leaves = maps(2)
    (gradient,) = torch.autograd.grad(of(depth_attention, leaves).sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()


def test_a_missing_value_is_an_error() -> None:
    query, *keys = maps(1)
    with pytest.raises(ValueError, match="2 and 1"):
        depth_attention(query, keys, keys[:1])
