"""The kernel in C against torch's attention on stacked slots in float64; the gradients that wait at the slots' cut."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from attvae import compiled_c
from attvae.bench.sampling import made
from attvae.kernels.depth_attention import weighted_maps
from attvae.kernels.depth_attention.choose import choose
from attvae.kernels.depth_attention.compiled import depth_attention, unsupported
from attvae.kernels.depth_attention.slot_gradient import cut

pytestmark = pytest.mark.skipif(bool(weighted_maps.why_not()), reason=str(weighted_maps.why_not()))

Attend = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor], float], Tensor]
Cut = Callable[[Tensor, int], Sequence[Tensor]]
ORDERS = pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=["planes", "pixels"])
SHAPES = [(1, 1, 1, 1, 1), (2, 3, 5, 3, 4), (3, 20, 33, 5, 7), (1, 17, 2, 1, 9), (2, 4, 64, 6, 1), (1, 2, 3, 96, 96)]


def torch_attention(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float) -> Tensor:
    return F.scaled_dot_product_attention(
        query.permute(0, 2, 3, 1)[..., None, :],
        torch.stack([*keys]).permute(1, 3, 4, 0, 2),
        torch.stack([*values]).permute(1, 3, 4, 0, 2),
        scale=scale,
    )[..., 0, :].permute(0, 3, 1, 2)


def split(whole: Tensor, channels: int) -> Sequence[Tensor]:
    return whole.split([channels, whole.shape[1] - channels], dim=1)


def normal(*shape: int, order: torch.memory_format = torch.contiguous_format, seed: int = 0) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=noise).contiguous(memory_format=order).requires_grad_()


def maps(n: int, b: int = 2, k: int = 3, c: int = 5, h: int = 3, w: int = 4) -> list[Tensor]:
    """A query, n keys, n values."""
    return [normal(b, width, h, w, seed=i) for i, width in enumerate([k] * (n + 1) + [c] * n)]


def of(attend: Attend, leaves: Sequence[Tensor], scale: float = 0.7) -> Tensor:
    n = len(leaves) // 2
    return attend(leaves[0], leaves[1 : n + 1], leaves[n + 1 :], scale)


def assert_near(found: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
    """In float32: what the rounding of each operation leaves."""
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-5, atol=2e-5)


def gradients(output: Tensor, leaves: Sequence[Tensor], upstream: Tensor, **how: bool) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, leaves, upstream.to(output.dtype), **how)


def assert_as_torch(leaves: Sequence[Tensor], upstream: Tensor) -> None:
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found, expected = of(depth_attention, leaves), of(torch_attention, exact)
    assert_near([found, *gradients(found, leaves, upstream)], [expected, *gradients(expected, exact, upstream)])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16, 64])
def test_any_number_of_slots(n: int) -> None:
    leaves = maps(n)
    assert_as_torch(leaves, normal(2, 5, 3, 4, seed=99))


@pytest.mark.parametrize("shape", SHAPES)
@ORDERS
def test_any_sizes(shape: tuple[int, int, int, int, int], order: torch.memory_format) -> None:
    leaves = [leaf.detach().contiguous(memory_format=order).requires_grad_() for leaf in maps(6, *shape)]
    assert_as_torch(leaves, normal(*leaves[-1].shape, order=order, seed=99))


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
    assert_as_torch(maps(4), upstream)


def test_maps_of_all_strides() -> None:
    """Of two orders, broadcast, and with gaps between pixels and channels."""
    keys = [normal(2, 3, 3, 4), normal(2, 3, 3, 4, order=torch.channels_last), normal(1, 3, 3, 4).expand(2, -1, -1, -1)]
    keys.append(normal(2, 6, 6, 8)[:, ::2, ::2, 1::2])
    values = [torch.cat([key, key], dim=1)[:, 1:] for key in keys[:-1]] + [normal(2, 5, 4, 3).transpose(2, 3)]
    query = normal(2, 7, 3, 4)[:, 4:]
    leaves = [leaf.detach().requires_grad_() for leaf in (query, *keys, *values)]
    assert_as_torch(leaves, normal(2, 5, 3, 4, seed=99))


def stack(cutting: Cut, attend: Attend, first: Tensor, wholes: Sequence[Tensor], queries: Sequence[Tensor]) -> Tensor:
    """A slot for all samples, then others; three layers attend to them, which all have other uses, too."""
    slots = [cutting(first.expand(2, -1, -1, -1), 5), *(cutting(whole, 5) for whole in wholes)]
    outputs = [
        attend(query, [key for _, key in slots[:n]], [value for value, _ in slots[:n]], 0.7)
        for n, query in enumerate(queries, start=2)
    ]
    assert len(slots) == len(queries) + 2  # the last slot is seen by nobody
    other = sum((value.square().sum() + key.sin().sum() for value, key in slots[1:3]), wholes[0].sum())
    return torch.stack([output.square() for output in outputs]).sum() + other


def stacks(order: torch.memory_format) -> tuple[list[Tensor], Callable[[Cut, Attend, Sequence[Tensor]], Tensor]]:
    leaves = [normal(1, 8, 3, 4, order=order), *(normal(2, 8, 3, 4, order=order, seed=n) for n in range(1, 5))]
    leaves += [normal(2, 3, 3, 4, seed=n) for n in range(10, 13)]
    return leaves, lambda cutting, attend, given: stack(cutting, attend, given[0], given[1:5], given[5:])


@ORDERS
def test_gradients_that_wait_at_the_cut(order: torch.memory_format) -> None:
    leaves, loss = stacks(order)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found, expected = loss(cut, depth_attention, leaves), loss(split, torch_attention, exact)
    one = torch.ones(())
    given = {"allow_unused": True, "materialize_grads": True}
    exact_gradients = gradients(expected, exact, one, **given)
    assert_near([found], [expected])
    for _ in range(2):  # the graph forgets what the first pass left
        assert_near(gradients(found, leaves, one, retain_graph=True, **given), exact_gradients)


@ORDERS
def test_a_pass_through_a_part_of_the_graph_leaves_nothing_behind(order: torch.memory_format) -> None:
    leaves, loss = stacks(order)
    found, once = loss(cut, depth_attention, leaves), loss(cut, depth_attention, leaves)
    gradients(found, leaves[-1:], torch.ones(()), retain_graph=True)  # of a query: no slot's cut runs
    given = {"allow_unused": True, "materialize_grads": True}
    expected = gradients(once, leaves, torch.ones(()), **given)
    for one, other in zip(gradients(found, leaves, torch.ones(()), **given), expected, strict=True):
        assert torch.equal(one, other)


def test_other_forms_leave_theirs_to_autograd() -> None:
    leaves, loss = stacks(torch.channels_last)
    plain, _ = choose("torch", leaves[5], [leaves[5]], [leaves[5]])
    calls = iter([depth_attention, plain, depth_attention])
    given = {"allow_unused": True, "materialize_grads": True}
    mixed = gradients(loss(cut, lambda *a: next(calls)(*a), leaves), leaves, torch.ones(()), **given)
    expected = gradients(loss(split, plain, leaves), leaves, torch.ones(()), **given)
    torch.testing.assert_close(mixed, expected)


def test_recomputed_layers() -> None:
    """The layer's forward pass runs again in the backward pass, whose gradients must reach the first one's slots."""
    leaves, loss = stacks(torch.channels_last)

    def layered(recompute: bool) -> Attend:
        def attend(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float) -> Tensor:
            def layer(query: Tensor) -> Tensor:
                own, _ = cut(torch.cat([values[-1], keys[-1]], dim=1).tanh(), 5)
                return depth_attention(query, keys, [*values[:-1], own], scale)

            return checkpoint(layer, query, use_reentrant=False) if recompute else layer(query)

        return attend

    given = {"allow_unused": True, "materialize_grads": True}
    found, expected = (
        gradients(loss(cut, layered(recompute), leaves), leaves, torch.ones(()), **given) for recompute in (True, False)
    )
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@ORDERS
def test_the_same_bits_with_any_number_of_threads(order: torch.memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_c, "GRAIN", 1)
    leaves, loss = stacks(order)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            total = loss(cut, depth_attention, leaves)
            found.append([total, *gradients(total, leaves[1:4] + leaves[5:], torch.ones(()))])
    finally:
        torch.set_num_threads(before)
    for one, two, three in zip(*found, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)


@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [4], [0, 4], [1, 3]])
def test_gradients_of_some_inputs(wanted: list[int]) -> None:
    """Query, two keys, two values."""
    leaves = [leaf.detach().requires_grad_(i in wanted) for i, leaf in enumerate(maps(2))]
    chosen, upstream = [leaves[i] for i in wanted], normal(2, 5, 3, 4, seed=99).detach()
    found, expected = (gradients(of(a, leaves), chosen, upstream) for a in (depth_attention, torch_attention))
    torch.testing.assert_close(found, expected)


def test_without_gradients() -> None:
    leaves = maps(4)
    with torch.no_grad():
        found = of(depth_attention, leaves)
    assert not found.requires_grad
    torch.testing.assert_close(found, of(torch_attention, leaves).detach())


def test_what_is_not_finite_stays_where_it_is() -> None:
    leaves = [leaf.detach() for leaf in maps(6)]
    leaves[7][0, 2, 1, 1] = torch.inf
    leaves[9][1, 3, 0, 2] = torch.nan
    found = of(depth_attention, leaves)
    assert (~found.isfinite()).nonzero().tolist() == [[0, 2, 1, 1], [1, 3, 0, 2]]


def test_second_derivatives_are_an_error() -> None:
    """Also where nothing else uses the slots, so that autograd would find nothing to differentiate."""
    query, *wholes = (normal(2, width, 3, 4, seed=i) for i, width in enumerate((3, 8, 8)))
    values, keys = zip(*(cut(whole, 5) for whole in wholes), strict=True)
    output = depth_attention(query, keys, values)
    with pytest.raises(RuntimeError, match="no second derivatives, which create_graph=True prepares"):
        torch.autograd.grad(output.square().sum(), wholes[:1], create_graph=True)


def test_derivatives_in_forward_mode_are_left_to_torch() -> None:
    leaves = [leaf.detach() for leaf in maps(2)]
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(leaves[0], torch.ones_like(leaves[0]))
        assert "forward mode" in (unsupported(dual, leaves[1:3], leaves[3:]) or "")


@pytest.mark.parametrize("look", [Tensor.retain_grad, lambda value: value.register_hook(lambda grad: None)])
def test_who_looks_at_the_gradient_of_a_value_gets_all_of_it(look: Callable[[Tensor], object]) -> None:
    wholes = [normal(2, 8, 3, 4, seed=n) for n in range(2)]
    seen: list[Tensor] = []
    for cutting, attend in ((cut, depth_attention), (split, torch_attention)):
        values, keys = zip(*(cutting(whole, 5) for whole in wholes), strict=True)
        look(values[0])
        values[0].register_hook(seen.append)
        attend(keys[0], keys, values, 0.7).square().sum().backward()
    torch.testing.assert_close(*seen)


def test_scratch_memory_is_of_the_maps_kind_whatever_is_the_default() -> None:
    leaves, loss = stacks(torch.channels_last)
    given = {"allow_unused": True, "materialize_grads": True}
    expected = gradients(loss(cut, depth_attention, leaves), leaves, torch.ones(()), **given)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.double)
    try:
        found = gradients(loss(cut, depth_attention, leaves), leaves, torch.ones(()), **given)
    finally:
        torch.set_default_dtype(default)
    leaves = maps(2)
    with torch.device("meta"):
        output = of(depth_attention, leaves)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert torch.equal(output, of(depth_attention, leaves))


def test_torch_jit_trace_gets_torch_operations() -> None:
    query, keys, values = (each for each in ([maps(2)[0]], maps(2)[1:3], maps(2)[3:]))

    def attend(*leaves: Tensor) -> Tensor:
        return choose("auto", leaves[0], leaves[1:3], leaves[3:])[0](leaves[0], leaves[1:3], leaves[3:])

    with torch.no_grad():
        traced = torch.jit.trace(attend, [leaf.detach() for leaf in (*query, *keys, *values)])
        other = [leaf.detach() + 1 for leaf in (*query, *keys, *values)]
        torch.testing.assert_close(traced(*other), attend(*other))


def test_the_gradient_of_a_value_by_itself_is_an_error() -> None:
    value, key = cut(normal(2, 8, 3, 4), 5)
    with pytest.raises(RuntimeError, match=r"by itself was asked for.*ask for that of the slot"):
        torch.autograd.grad(depth_attention(key, [key], [value], 1.0).sum(), [value])


def test_a_slot_that_is_the_output_of_another_layer() -> None:
    query, *wholes = (normal(2, width, 3, 4, seed=i) for i, width in enumerate((3, 8, 8)))

    def output(cutting: Cut, attend: Attend, leaves: Sequence[Tensor]) -> Tensor:
        values, keys = zip(*(cutting(whole, 5) for whole in leaves[1:]), strict=True)
        return attend(leaves[0], keys, [values[0], attend(leaves[0].sin(), keys, values, 0.7)], 0.7)

    leaves = [query, *wholes]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    upstream = normal(2, 5, 3, 4, seed=99)
    found, expected = output(cut, depth_attention, leaves), output(split, torch_attention, exact)
    assert_near(gradients(found, leaves, upstream), gradients(expected, exact, upstream))


def test_torch_compile_gets_torch_operations() -> None:
    def attend(query: Tensor, *wholes: Tensor) -> Tensor:
        values, keys = zip(*(cut(whole, 5) for whole in wholes), strict=True)
        chosen, _ = choose("auto", query, keys, values)
        return chosen(query, keys, values)

    leaves = [normal(2, 3, 3, 4), normal(2, 8, 3, 4, seed=1), normal(2, 8, 3, 4, seed=2)]
    found, expected = torch.compile(attend, fullgraph=True, backend="aot_eager")(*leaves), attend(*leaves)
    torch.testing.assert_close(found, expected)
    both = (gradients(output, leaves, torch.ones(2, 5, 3, 4)) for output in (found, expected))
    torch.testing.assert_close(*both)


def test_a_traced_model_is_torch_operations() -> None:
    model = made(3)

    class Head(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *noise: Tensor) -> Tensor:
            return model.sample_head(2, 0.8, noise)

    with torch.no_grad():
        noises = ([normal(2, *shape, seed=seed).detach() for shape in model.latent_shapes] for seed in range(2))
        traced = torch.jit.trace(Head(), tuple(next(noises)))
        other = next(noises)
        torch.testing.assert_close(traced(*other), Head()(*other), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({1: torch.bfloat16}, "takes float32, key 0 is bfloat16"),
        ({4: torch.double}, "takes float32, value 1 is float64"),
        ({0: torch.device("meta")}, "needs the CPU, query 0 is on meta"),
        ({2: (2, 3, 3, 5)}, r"key 1 is \[2, 3, 3, 5\], not \[2, 3, 3, 4\]"),
        ({4: (2, 6, 3, 4)}, r"value 1 is \[2, 6, 3, 4\], not \[2, 5, 3, 4\]"),
        ({4: None}, "needs a key for each value, got 2 and 1"),
        (dict.fromkeys(range(3), (2, 0, 3, 4)), "at least one sample, channel and pixel, got 2x0x3x4 and 5 value"),
    ],
)
def test_what_it_cannot_do_is_an_error(change: dict[int, object], reason: str) -> None:
    leaves: list[Tensor] = []
    for i, leaf in enumerate(maps(2)):
        match change.get(i, leaf):
            case Tensor() as same:
                leaves.append(same.detach())
            case tuple() as shape:
                leaves.append(torch.zeros(shape))
            case torch.dtype() | torch.device() as kind:
                leaves.append(leaf.detach().to(kind))
    arguments = leaves[0], leaves[1:3], leaves[3:]
    assert unsupported(*arguments) is not None
    with pytest.raises(ValueError, match=reason):
        depth_attention(*arguments)
