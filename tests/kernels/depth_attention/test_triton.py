"""The Triton kernels against torch's attention and the plain formula.

With a GPU as they run there (`pytest -m gpu`); without one in Triton's interpreter (`make test-triton`).
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attvae.kernels.depth_attention import reference

pytestmark = [pytest.mark.triton, pytest.mark.gpu]

DEVICE = "cpu" if "TRITON_INTERPRET" in os.environ else "cuda"
Slots = list[Tensor]


@pytest.fixture
def kernel() -> ModuleType:
    from attvae.kernels.depth_attention import triton

    assert triton.INTERPRETED or torch.cuda.is_available(), "without a GPU: TRITON_INTERPRET=1"
    return triton


def maps(b: int, k: int, c: int, h: int, w: int, n: int, dtype: torch.dtype) -> tuple[Tensor, Slots, Slots]:
    torch.manual_seed(0)
    made = [torch.randn(b, width, h, w, device=DEVICE).to(dtype) for width in [k] * (n + 1) + [c] * n]
    for tensor in made:
        tensor.requires_grad_()
    return made[0], made[1 : n + 1], made[n + 1 :]


def torch_attention(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float) -> Tensor:
    return F.scaled_dot_product_attention(
        query.permute(0, 2, 3, 1)[..., None, :],
        torch.stack(list(keys)).permute(1, 3, 4, 0, 2),
        torch.stack(list(values)).permute(1, 3, 4, 0, 2),
        scale=scale,
    )[..., 0, :].permute(0, 3, 1, 2)


def assert_same(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], leaves: Sequence[Tensor]) -> None:
    """Output and gradients of both, theirs in float64 rounded once: what float32 sums and one rounding leave."""
    found = ours(*leaves)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected = theirs(*exact)
    upstream = torch.randn_like(found)
    gradients = torch.autograd.grad(found, leaves, upstream)
    exact_gradients = torch.autograd.grad(expected, exact, upstream.double())
    for one, other in zip((found, *gradients), (expected, *exact_gradients), strict=True):
        rtol = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[one.dtype]
        torch.testing.assert_close(one, other.to(one.dtype), rtol=rtol, atol=2e-5)


@pytest.mark.parametrize(
    ("shape", "slots"),
    [
        ((2, 3, 7, 3, 5), 1),
        ((2, 20, 36, 5, 7), 3),
        ((1, 8, 16, 4, 4), 64),
        ((3, 1, 1, 1, 1), 2),
        ((1, 5, 9, 1, 33), 17),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_output_and_gradients_are_those_of_torch_attention(
    kernel: ModuleType, shape: tuple[int, int, int, int, int], slots: int, dtype: torch.dtype
) -> None:
    query, keys, values = maps(*shape, slots, dtype)
    assert_same(
        lambda q, *s: kernel.depth_attention(q, s[:slots], s[slots:], scale=0.7),
        lambda q, *s: torch_attention(q, s[:slots], s[slots:], scale=0.7),
        [query, *keys, *values],
    )


def test_large_scores(kernel: ModuleType) -> None:
    query, keys, values = maps(1, 4, 4, 2, 2, 5, torch.float32)
    assert_same(
        lambda q, *s: kernel.depth_attention(q, s[:5], s[5:], scale=300.0),
        lambda q, *s: torch_attention(q, s[:5], s[5:], scale=300.0),
        [query, *keys, *values],
    )


def channels_last(contexts: Slots) -> Slots:
    return [context.contiguous(memory_format=torch.channels_last) for context in contexts]


@pytest.mark.parametrize(
    "seen",
    [
        pytest.param(lambda contexts: contexts, id="slices of channels"),
        pytest.param(channels_last, id="channels last"),
        pytest.param(lambda contexts: [*channels_last(contexts[:1]), *contexts[1:]], id="one channels last"),
        pytest.param(lambda contexts: [*contexts[:1], *channels_last(contexts[1:])], id="all but one channels last"),
        pytest.param(lambda contexts: [context[:, :, ::2] for context in contexts], id="every second row"),
        pytest.param(lambda contexts: [context[:, :, :, 1:] for context in contexts], id="without a column"),
        pytest.param(lambda contexts: [context.transpose(2, 3) for context in contexts], id="transposed"),
        pytest.param(lambda contexts: [context.flip(0)[1:] for context in contexts], id="a part of the batch"),
        pytest.param(lambda contexts: [context[:, :, :1, :1].expand(-1, -1, 3, 2) for context in contexts], id="pixel"),
        pytest.param(
            lambda contexts: [contexts[0][:1].expand(2, -1, -1, -1), *contexts[1:]], id="a constant for every sample"
        ),
    ],
)
def test_any_strides(kernel: ModuleType, seen: Callable[[Slots], Slots]) -> None:
    """Query, keys and values are slices of the same maps, and their gradients meet there."""
    k, c, n = 3, 5, 3
    torch.manual_seed(0)
    contexts = [torch.randn(2, c + 2 * k, 4, 6, device=DEVICE, requires_grad=True) for _ in range(n)]

    def through(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def attention(*leaves: Tensor) -> Tensor:
            slots = seen(list(leaves))
            return attend(
                slots[-1][:, c + k :], [slot[:, c : c + k] for slot in slots], [slot[:, :c] for slot in slots]
            )

        return attention

    assert_same(through(kernel.depth_attention), through(reference.depth_attention), contexts)


def test_a_gradient_that_is_one_number(kernel: ModuleType) -> None:
    query, keys, values = maps(2, 3, 4, 3, 3, 4, torch.float32)
    leaves = [query, *keys, *values]
    found = torch.autograd.grad(kernel.depth_attention(query, keys, values).sum(), leaves)
    expected = torch.autograd.grad(reference.depth_attention(query, keys, values).sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-6)


def test_only_what_asks_for_a_gradient_gets_one(kernel: ModuleType) -> None:
    query, keys, values = maps(1, 2, 3, 2, 2, 2, torch.float32)
    for tensor in (query, keys[0], values[1]):
        tensor.requires_grad_(False)
    kernel.depth_attention(query, keys, values).sum().backward()
    assert [tensor.grad is not None for tensor in (query, *keys, *values)] == [False, False, True, True, False]


def test_several_dtypes(kernel: ModuleType) -> None:
    """As under autocast, where a layer norm gives float32 beside a convolution's bfloat16."""
    query, keys, values = maps(1, 3, 4, 2, 3, 3, torch.bfloat16)
    keys[1], values[2] = (tensor.detach().float().requires_grad_() for tensor in (keys[1], values[2]))
    leaves = [query, *keys, *values]
    assert_same(
        lambda q, *s: kernel.depth_attention(q, s[:3], s[3:]),
        lambda q, *s: torch_attention(q, s[:3], s[3:], 1.0),
        leaves,
    )
    assert kernel.depth_attention(query, keys, values).dtype == torch.float32


def test_kept_for_the_backward_pass(kernel: ModuleType) -> None:
    """One float32 a pixel beyond the inputs, whatever the number of slots."""
    query, keys, values = maps(2, 3, 4, 5, 3, 6, torch.float32)
    inputs = {tensor.data_ptr() for tensor in (query, *keys, *values)}
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        kernel.depth_attention(query, keys, values)
    assert sum(tensor.nbytes for tensor in kept if tensor.data_ptr() not in inputs) == 2 * 5 * 3 * 4


def test_traced_as_one_graph(kernel: ModuleType) -> None:
    query, keys, values = maps(2, 3, 4, 2, 3, 3, torch.float32)
    compiled = torch.compile(kernel.depth_attention, fullgraph=True, backend="aot_eager")
    assert_same(
        lambda q, *s: compiled(q, list(s[:3]), list(s[3:])),
        lambda q, *s: torch_attention(q, s[:3], s[3:], scale=1.0),
        [query, *keys, *values],
    )


@pytest.mark.parametrize("last", [False, True])
def test_operators_keep_what_they_promise_to_torch(kernel: ModuleType, last: bool) -> None:
    """Schema, and shapes and strides under fake tensors, as torch.library checks them."""
    query, keys, values = maps(2, 3, 4, 2, 3, 2, torch.float32)
    with torch.no_grad():
        if last:
            values = channels_last(values)
        out, log_sum = kernel._attend(query, keys, values, 1.0)
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(kernel._attend, (query, keys, values, 1.0), test_utils=checks)
        arguments = (torch.ones_like(out), query, keys, values, log_sum, 1.0)
        torch.library.opcheck(kernel._attend_backward, arguments, test_utils=checks)


def test_what_cannot_run_says_why(kernel: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    query, keys, values = maps(1, 2, 3, 2, 2, 2, torch.float32)
    assert kernel.unsupported(query, keys, values) is None
    wide = [torch.zeros(1, 513, 2, 2, device=DEVICE)] * 2
    for arguments, reason in (
        ((query, keys, values[:1]), "a key for each value, got 2 and 1"),
        ((query, [], []), "got 0 and 0"),
        ((query, keys, wide), "up to 64 key and 512 value channels, got 2 and 513"),
        ((query, keys, [values[0], values[1].double()]), "value 1 is float64"),
        ((query, [keys[0], keys[1][:, :, :1]], values), r"key 1 is \[1, 2, 1, 2\], not \[1, 2, 2, 2\]"),
        ((query, keys, [values[0], values[1].to("meta")]), "value 1 is on meta"),
        ((query[:0], [key[:0] for key in keys], [value[:0] for value in values]), "at least one sample"),
    ):
        with pytest.raises(ValueError, match=reason):
            kernel.depth_attention(*arguments)
    monkeypatch.setattr(kernel, "INTERPRETED", False)
    assert kernel.unsupported(query.cpu(), keys, values) == "it needs a GPU; the tensors are on cpu"
    monkeypatch.setattr(kernel, "INTERPRETED", True)
    reason = kernel.unsupported(query.to("meta"), keys, values)
    assert reason == "it needs the CPU, since TRITON_INTERPRET is set; the tensors are on meta"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_trial(kernel: ModuleType, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    query = maps(1, 4, 4, 2, 2, 1, dtype)[0]
    monkeypatch.setattr(kernel, "_failures", {})
    with torch.inference_mode():
        assert kernel.failure(query) is None
    monkeypatch.setattr(kernel, "_failures", {})

    def layer(x: Tensor) -> Tensor:
        assert kernel.failure(x) is None
        return x.exp()

    checkpoint(layer, query, use_reentrant=False).sum().backward()  # whose hooks are those of this thread

    def doubled(*maps: Tensor) -> Tensor:
        return 2 * reference.depth_attention(*maps)

    def broken(*maps: Tensor) -> Tensor:
        raise RuntimeError("Failed to find C compiler.\nSet CC")

    for kernel_, why in ((doubled, "wrong by [0-9]"), (broken, "RuntimeError: Failed to find C compiler.$")):
        monkeypatch.setattr(kernel, "_failures", {})
        monkeypatch.setattr(kernel, "depth_attention", kernel_)
        assert re.search(why, kernel.failure(query) or "")
        monkeypatch.setattr(kernel, "depth_attention", None)
        assert re.search(why, kernel.failure(query) or "")  # tried once


def test_bytes_moved(kernel: ModuleType) -> None:
    """2 samples of 3 pixels, 2 slots with keys of 4 and values of 5 channels, one of them the same for both samples."""
    query, keys, values = maps(2, 4, 5, 1, 3, 2, torch.bfloat16)
    values[0] = values[0][:1].expand(2, -1, -1, -1)
    pixels, read, softmax = 2 * 3, 2 * 3 * 2 * (4 + 2 * 4 + 5) + 3 * 2 * 5, 2 * 3 * 4
    forward, backward = kernel.bytes_moved(query, keys, values)
    assert forward == read + softmax + pixels * 2 * 5
    assert backward == read + softmax + pixels * 2 * 5 + pixels * 2 * (4 + 2 * 4 + 2 * 5)


@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU")
def test_in_a_cuda_graph(kernel: ModuleType) -> None:
    """The table of addresses is copied anew with each replay; other work in between must not have touched it."""
    query, keys, values = maps(2, 8, 16, 8, 8, 5, torch.float32)
    leaves = [query, *keys, *values]

    def step() -> list[Tensor]:
        out = kernel.depth_attention(query, keys, values)
        return [out, *torch.autograd.grad(out, leaves, torch.ones_like(out))]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="relaxed"):
        found = step()
    for _ in range(3):
        with torch.no_grad():
            for leaf in leaves:
                leaf.normal_()
        [torch.full((1000,), -1).pin_memory().to(DEVICE, non_blocking=True) for _ in range(20)]
        graph.replay()
        for one, other in zip(found, step(), strict=True):
            torch.testing.assert_close(one, other)


def test_compiles_for_hopper() -> None:
    """Also without a GPU: values arrive by asynchronous copies of 16 bytes, and no register is spilled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compiled_for_hopper.py")
    ran = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=250)
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == 4, ran.stdout
    for line in ran.stdout.splitlines():
        name, wide_copies, spilled_bytes = line.split()
        assert int(wide_copies) > 8, name
        assert int(spilled_bytes) == 0, name
