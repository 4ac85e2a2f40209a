"""Depth-wise attention in Triton: one kernel a layer for the output, one for all gradients.

A program owns some pixels of one sample with all their channels and goes over the slots once, with a running softmax
(Milakov and Gimelshein 2018, arXiv:1805.02867): each key and value is read once, and the slots are never stacked. The
kernels find them through a table of addresses and strides that goes to the GPU with each call. For the gradients only
the inputs and one number a pixel are kept; with p_n the weight of slot n, g the gradient of the output and
d_n = <g, value_n>:

    grad value_n = p_n g
    grad key_n   = scale p_n (d_n - D) query            D = sum of p_n d_n
    grad query   = scale (sum of p_n d_n key_n - D sum of p_n key_n)

so that values, keys and gradients pass once, too: p_n and p_n d_n wait in a small buffer until D is known.

Tiles follow from the shapes by a rule, not by timing: every run and rank computes the same numbers, the first call is
as fast as the next, and nothing is tuned inside a CUDA graph. `benchmarks/gpu_attention.py` measures the rule against
its neighbours. It needs torch and Triton only, and so does this file. The kernels ran in Triton's interpreter and
compile for Hopper (`make test-triton`); no GPU has run them yet.

Legend: B batch, C value channels, K key channels, H and W the map, n slots.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from attvae.kernels.depth_attention import triton_kernels

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MAX_CHANNELS = 512
MAX_KEY_CHANNELS = 64
INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: on the CPU, for tests


class Tiling(NamedTuple):
    """How the work is cut. A tile is so many bytes of each channel wide; its values are dealt to warps in portions."""

    row_bytes: int = 64  # two sectors, all of them used; and 16x16 maps at batch 32 are two programs for each SM
    warp_bytes: int = 4096  # eight loads of 16 bytes a thread
    stages: int = 3  # slots in flight


tiling = Tiling()
_captured: list[Tensor] = []  # what CUDA graphs copy from, kept for as long as one might run
_failures: dict[tuple[int | None, torch.dtype], str | None] = {}


def unsupported(query_BKHW: Tensor, keys_BKHW: Sequence[Tensor], values_BCHW: Sequence[Tensor]) -> str | None:
    """Why the kernel cannot run on these, in a sentence; None if it can."""
    if not keys_BKHW or len(keys_BKHW) != len(values_BCHW):
        return f"it needs a key for each value, got {len(keys_BKHW)} and {len(values_BCHW)}"
    device = query_BKHW.device
    if device.type != ("cpu" if INTERPRETED else "cuda"):
        needed = "the CPU, since TRITON_INTERPRET is set" if INTERPRETED else "a GPU"
        return f"it needs {needed}; the tensors are on {device}"
    if torch.version.cuda and not INTERPRETED and torch.cuda.get_device_properties(device).major < 8:
        return f"it needs compute capability 8.0, {torch.cuda.get_device_properties(device).name} has less"
    b, k, h, w = query_BKHW.shape
    c = values_BCHW[0].shape[1]
    if k > MAX_KEY_CHANNELS or c > MAX_CHANNELS:
        return f"it takes up to {MAX_KEY_CHANNELS} key and {MAX_CHANNELS} value channels, got {k} and {c}"
    if 0 in (b, k, h, w, c):
        return f"it needs at least one sample, channel and pixel, got {b}x{k}x{h}x{w} and {c} value channels"
    for name, slots, shape in (
        ("query", [query_BKHW], (b, k, h, w)),
        ("key", keys_BKHW, (b, k, h, w)),
        ("value", values_BCHW, (b, c, h, w)),
    ):
        for n, slot in enumerate(slots):
            if slot.dtype not in DTYPES:
                return f"it takes bfloat16, float16 and float32, {name} {n} is {str(slot.dtype).removeprefix('torch.')}"
            if slot.device != device:
                return f"{name} {n} is on {slot.device}, the query on {device}"
            if slot.shape != shape:
                return f"{name} {n} is {list(slot.shape)}, not {list(shape)}"
    return None


def depth_attention(
    query_BKHW: Tensor, keys_BKHW: Sequence[Tensor], values_BCHW: Sequence[Tensor], scale: float = 1.0
) -> Tensor:
    """Sum of the slots' values under the attention weights: `reference.depth_attention` on a GPU.

    The sums are float32. The output has the values' dtype and their memory format. Slots in another dtype or layout
    than the others are copied: hold them all alike.

    Args:
        query_BKHW: [B, K, H, W]
        keys_BKHW: a [B, K, H, W] for each slot; any strides, also those of slices and of expanded maps.
        values_BCHW: a [B, C, H, W] for each slot; likewise.

    Raises:
        ValueError: what `unsupported` says.
    """
    reason = unsupported(query_BKHW, keys_BKHW, values_BCHW)
    if reason is not None:
        raise ValueError(f"depth-wise attention cannot run in Triton: {reason}")
    query_BKHW, *keys = _of_one_dtype([query_BKHW, *keys_BKHW])
    out_BCHW: Tensor = _DepthAttention.apply(  # type: ignore[no-untyped-call]
        scale, len(keys), query_BKHW, *keys, *_of_one_dtype(values_BCHW)
    )
    return out_BCHW


def failure(query_BKHW: Tensor) -> str | None:
    """What goes wrong with both kernels on the query's device and in its precision; None if they are right.

    Found once by a small trial against `reference`: Triton compiles on this host, with what compiler and driver there
    are. While torch.compile traces, or a CUDA graph records, there is no trial: what is not known then counts as right.
    """
    kind = (query_BKHW.device.index, query_BKHW.dtype)
    if kind not in _failures:
        if torch.compiler.is_compiling() or (query_BKHW.is_cuda and torch.cuda.is_current_stream_capturing()):
            return None
        with ThreadPoolExecutor(1) as own_thread:  # without the hooks and modes under which it is asked for
            _failures[kind] = own_thread.submit(_trial, query_BKHW.device, query_BKHW.dtype).result()
    return _failures[kind]


def _trial(device: torch.device, dtype: torch.dtype) -> str | None:
    from attvae.kernels.depth_attention import reference  # needs another package; the kernels by themselves do not

    def results(attend: Any, leaves: Sequence[Tensor]) -> list[Tensor]:
        out_BCHW = attend(leaves[0], leaves[1:3], leaves[3:])
        return [out_BCHW.detach(), *torch.autograd.grad(out_BCHW.float().square().sum(), leaves)]

    try:
        generator = torch.Generator().manual_seed(0)
        made = [torch.randn(2, width, 3, 5, generator=generator, device="cpu") for width in (4, 4, 4, 20, 20)]
        ours = [each.to(device, dtype).requires_grad_() for each in made]
        exact = [each.detach().float().requires_grad_() for each in ours]
        pairs = zip(results(depth_attention, ours), results(reference.depth_attention, exact), strict=True)
        error = max(float((one.float() - other).norm() / other.norm()) for one, other in pairs)
    except Exception as wrong:  # whatever a compiler, a driver or a launch can raise
        return f"a trial failed: {type(wrong).__name__}: {(str(wrong).strip() or 'no message').splitlines()[0]}"
    # A few roundings of the output, which the gradients see again.
    allowed = 16 * torch.finfo(dtype).eps
    return None if error <= allowed else f"a trial gave results that are wrong by {error:.1g} of their size"


def bytes_moved(query_BKHW: Tensor, keys_BKHW: Sequence[Tensor], values_BCHW: Sequence[Tensor]) -> tuple[int, int]:
    """The least that the forward pass and the backward pass must read and write; an expanded map counts once."""
    read = sum(_stored_bytes(tensor) for tensor in (query_BKHW, *keys_BKHW, *values_BCHW))
    out = values_BCHW[0].numel() * values_BCHW[0].element_size()
    softmax = query_BKHW[:, 0].numel() * 4
    written = sum(tensor.numel() * tensor.element_size() for tensor in (query_BKHW, *keys_BKHW, *values_BCHW))
    return read + out + softmax, read + out + softmax + written


def _stored_bytes(tensor: Tensor) -> int:
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count


def _of_one_dtype(tensors: Sequence[Tensor]) -> list[Tensor]:
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return [tensor if tensor.dtype == dtype else tensor.to(dtype) for tensor in tensors]


# --------------------------------------------------------------------------- operators that torch.compile sees as one


@torch.library.custom_op("attvae::depth_attention", mutates_args=())
def _attend(
    query_BKHW: Tensor, keys_BKHW: Sequence[Tensor], values_BCHW: Sequence[Tensor], scale: float
) -> tuple[Tensor, Tensor]:
    """The output, and for each pixel the log of the softmax's sum."""
    launch, out_BCHW, log_sum_BHW = prepared(query_BKHW, keys_BKHW, values_BCHW, scale)
    launch()
    return out_BCHW, log_sum_BHW


@_attend.register_fake
def _(query_BKHW: Tensor, keys_BKHW: Sequence[Tensor], values_BCHW: Sequence[Tensor], scale: float) -> Any:
    out_BCHW = _like(values_BCHW[0], _is_channels_last(values_BCHW[-1]))
    return out_BCHW, query_BKHW.new_empty(query_BKHW[:, 0].shape, dtype=torch.float32)


@torch.library.custom_op("attvae::depth_attention_backward", mutates_args=())
def _attend_backward(
    grad_BCHW: Tensor,
    query_BKHW: Tensor,
    keys_BKHW: Sequence[Tensor],
    values_BCHW: Sequence[Tensor],
    log_sum_BHW: Tensor,
    scale: float,
) -> list[Tensor]:
    """Gradients of the query, of each key and of each value."""
    launch, grads = prepared_backward(grad_BCHW, query_BKHW, keys_BKHW, values_BCHW, log_sum_BHW, scale)
    launch()
    return grads


@_attend_backward.register_fake
def _(
    grad_BCHW: Tensor,
    query_BKHW: Tensor,
    keys_BKHW: Sequence[Tensor],
    values_BCHW: Sequence[Tensor],
    log_sum_BHW: Tensor,
    scale: float,
) -> list[Tensor]:
    channels_last = _is_channels_last(values_BCHW[-1])
    return [_like(tensor, channels_last) for tensor in (query_BKHW, *keys_BKHW, *values_BCHW)]


class _DepthAttention(torch.autograd.Function):
    """The two operators as one function; `register_autograd` takes a quarter longer on so many tensors."""

    @staticmethod
    def forward(ctx: Any, scale: float, n: int, query_BKHW: Tensor, *slots: Tensor) -> Tensor:
        out_BCHW, log_sum_BHW = _attend(query_BKHW, slots[:n], slots[n:], scale)
        ctx.scale = scale
        ctx.save_for_backward(log_sum_BHW, query_BKHW, *slots)
        return out_BCHW

    @staticmethod
    def backward(ctx: Any, grad_BCHW: Tensor) -> tuple[Tensor | None, ...]:
        log_sum_BHW, query_BKHW, *slots = ctx.saved_tensors
        n = len(slots) // 2
        grads = _attend_backward(grad_BCHW, query_BKHW, slots[:n], slots[n:], log_sum_BHW, ctx.scale)
        return None, None, *grads


# --------------------------------------------------------------------------- what a launch needs


def prepared(
    query_BKHW: Tensor, keys_BKHW: Sequence[Tensor], values_BCHW: Sequence[Tensor], scale: float
) -> tuple[Callable[[], None], Tensor, Tensor]:
    """The forward kernel's launch, with all that it needs on the device, and what it fills: `_attend`'s results."""
    slots = _Slots(query_BKHW, keys_BKHW, values_BCHW)
    query = _placed(query_BKHW, slots.channels_last)
    out_BCHW = _like(values_BCHW[0], slots.channels_last)
    log_sum_BHW = torch.empty_like(query_BKHW[:, 0], dtype=torch.float32, memory_format=torch.contiguous_format)
    table = slots.table()

    def launch() -> None:
        with torch.cuda.device_of(query_BKHW):
            triton_kernels.forward[slots.grid](
                table, query.tensor, out_BCHW, log_sum_BHW, len(keys_BKHW), scale,
                query.step, query.apart, **slots.cut,
            )  # fmt: skip

    return launch, out_BCHW, log_sum_BHW


def prepared_backward(
    grad_BCHW: Tensor,
    query_BKHW: Tensor,
    keys_BKHW: Sequence[Tensor],
    values_BCHW: Sequence[Tensor],
    log_sum_BHW: Tensor,
    scale: float,
) -> tuple[Callable[[], None], list[Tensor]]:
    """The backward kernel's launch likewise, and what it fills: `_attend_backward`'s results."""
    slots = _Slots(query_BKHW, keys_BKHW, values_BCHW)
    query, grad = (_placed(tensor, slots.channels_last) for tensor in (query_BKHW, grad_BCHW))
    grads = [_like(tensor, slots.channels_last) for tensor in (query_BKHW, *keys_BKHW, *values_BCHW)]
    waiting_2nBHW = log_sum_BHW.new_empty((2, len(keys_BKHW), *log_sum_BHW.shape))
    table = slots.table(grads[1:])

    def launch() -> None:
        with torch.cuda.device_of(query_BKHW):
            triton_kernels.backward[slots.grid](
                table, query.tensor, grad.tensor, grads[0], log_sum_BHW, waiting_2nBHW, len(keys_BKHW),
                scale, query.step, query.apart, grad.step, grad.apart, **slots.cut,
            )  # fmt: skip

    return launch, grads


class _Placed(NamedTuple):
    """A map and two of its strides: from a sample to the next, and from a channel (channels last: a pixel)."""

    tensor: Tensor
    step: int
    apart: int


class _Slots:
    """Keys and values in one layout, that of the newest value, and how the kernels go over them."""

    def __init__(self, query_BKHW: Tensor, keys_BKHW: Sequence[Tensor], values_BCHW: Sequence[Tensor]):
        b, k, h, w = query_BKHW.shape
        c = values_BCHW[0].shape[1]
        size = values_BCHW[0].element_size()
        self.channels_last = _is_channels_last(values_BCHW[-1])
        self.keys = [_placed(key_BKHW, self.channels_last) for key_BKHW in keys_BKHW]
        self.values = [_placed(value_BCHW, self.channels_last) for value_BCHW in values_BCHW]
        whole = 1 << (c.bit_length() - 1)  # 276 channels are 256 and a rest of 20: not half of a tile of 512 is wasted
        rest = triton.next_power_of_2(c - whole) if c > whole else 0
        block_p = min(tiling.row_bytes // size, triton.next_power_of_2(h * w))
        portions = (whole + rest) * block_p * size // tiling.warp_bytes
        self.grid = (b * triton.cdiv(h * w, block_p),)
        self.cut = {
            "KEY_CHANNELS": k, "CHANNELS": c, "PIXELS": h * w, "BLOCK_K": triton.next_power_of_2(k), "BLOCK_C": whole,
            "REST": rest, "BLOCK_P": block_p,
            "CHANNELS_LAST": self.channels_last, "KEY_ALIGN": _alignment(self.keys), "ALIGN": _alignment(self.values),
            "STAGES": tiling.stages, "num_warps": min(1 << max(portions, 1).bit_length() - 1, 8),
            "enable_fp_fusion": True,  # Triton 3.10 changes its default
        }  # fmt: skip

    def table(self, grads: Sequence[Tensor] = ()) -> Tensor:
        """Address and strides of keys and values, then the addresses of their gradients: int64, on the device."""
        rows = [entry for tensor, *strides in (*self.keys, *self.values) for entry in (tensor.data_ptr(), *strides)]
        table = torch.tensor([*rows, *(grad.data_ptr() for grad in grads)])
        device = self.keys[0].tensor.device
        if device.type == "cpu":
            return table
        table = table.pin_memory()  # else the copy would wait for all that the GPU has to do
        if torch.cuda.is_current_stream_capturing():
            _captured.append(table)
        return table.to(device, non_blocking=True)


def _placed(map_BCHW: Tensor, channels_last: bool) -> _Placed:
    """The map itself where its strides allow, else a copy."""
    _, c, h, w = map_BCHW.shape
    step, channel, row, column = map_BCHW.stride()
    pixel = column if w > 1 else row
    near, width, apart = (channel, c, pixel) if channels_last else (pixel, h * w, channel)
    if (near == 1 or width == 1) and (h == 1 or w == 1 or row == w * column):
        return _Placed(map_BCHW, step, apart)
    return _placed(map_BCHW.contiguous(memory_format=_format(channels_last)), channels_last)


def _alignment(slots: Sequence[_Placed]) -> int:
    """The power of 2 in bytes, 16 at most, at whose multiples all rows begin: how much a thread can read at once."""
    bits = 16
    for tensor, step, apart in slots:
        size = tensor.element_size()
        bits |= tensor.data_ptr() | step * size | apart * size
    return bits & -bits


def _is_channels_last(map_BCHW: Tensor) -> bool:
    return map_BCHW.stride(1) == 1 and map_BCHW.stride(3) != 1


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _like(map_BCHW: Tensor, channels_last: bool) -> Tensor:
    return torch.empty_like(map_BCHW, memory_format=_format(channels_last))
