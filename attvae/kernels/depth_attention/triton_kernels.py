"""The two Triton kernels of depth-wise attention; `triton.py` says what they compute and launches them.

`table` holds, for each key and then for each value, the address, the elements from a sample to the next and from a
channel to the next (with channels last: from a pixel to the next); for the backward pass the addresses of the gradients
of the keys and of the values follow. Channels come as a block, a power of 2, and a rest.

Legend: C channels of the block, R of the rest, K of the keys, P pixels of a tile.
"""

import triton
import triton.language as tl


@triton.jit
def _slot(row, sample, like, ALIGN: tl.constexpr):
    """Where the sample of a slot begins, and how far apart its channels (channels_last: its pixels) are."""
    elements: tl.constexpr = ALIGN * 8 // like.dtype.element_ty.primitive_bitwidth
    begin = tl.multiple_of(tl.load(row).to(like.dtype), ALIGN)
    step = tl.multiple_of(tl.load(row + 1), elements)
    apart = tl.multiple_of(tl.load(row + 2), elements)
    return begin + sample * step, apart


@triton.jit
def _tile(channel, pixel, apart, CHANNELS_LAST: tl.constexpr):
    """Offsets of [channels, pixels] from the sample's beginning."""
    return channel[:, None] + pixel[None, :] * apart if CHANNELS_LAST else channel[:, None] * apart + pixel[None, :]


@triton.jit(do_not_specialize=["slots"])
def forward(
    table, query, out, log_sum, slots, scale, query_step, query_apart,
    KEY_CHANNELS: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr, REST: tl.constexpr, BLOCK_P: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    KEY_ALIGN: tl.constexpr, ALIGN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(PIXELS, BLOCK_P)
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    pixel = tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    on_map = pixel < PIXELS
    k = tl.arange(0, BLOCK_K)
    c = tl.arange(0, BLOCK_C)
    key_mask = (k < KEY_CHANNELS)[:, None] & on_map[None, :]
    mask = on_map[None, :]

    query_KP = tl.load(query + sample * query_step + _tile(k, pixel, query_apart, CHANNELS_LAST), key_mask, 0.0)
    query_KP = query_KP.to(tl.float32) * scale
    highest_P = tl.full([BLOCK_P], float("-inf"), tl.float32)
    sum_P = tl.zeros([BLOCK_P], tl.float32)
    out_CP = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    if REST > 0:
        rest = BLOCK_C + tl.arange(0, REST)
        rest_mask = (rest < CHANNELS)[:, None] & on_map[None, :]
        rest_RP = tl.zeros([REST, BLOCK_P], tl.float32)
    for n in tl.range(0, slots, num_stages=STAGES):
        key, key_apart = _slot(table + 3 * n, sample, query, KEY_ALIGN)
        value, apart = _slot(table + 3 * (slots + n), sample, out, ALIGN)
        key_KP = tl.load(key + _tile(k, pixel, key_apart, CHANNELS_LAST), key_mask, 0.0)
        value_CP = tl.load(value + _tile(c, pixel, apart, CHANNELS_LAST), mask, 0.0)
        score_P = tl.sum(query_KP * key_KP.to(tl.float32), axis=0)
        higher_P = tl.maximum(highest_P, score_P)
        shrink_P = tl.exp(highest_P - higher_P)
        weight_P = tl.exp(score_P - higher_P)
        highest_P = higher_P
        sum_P = sum_P * shrink_P + weight_P
        out_CP = out_CP * shrink_P[None, :] + weight_P[None, :] * value_CP.to(tl.float32)
        if REST > 0:
            value_RP = tl.load(value + _tile(rest, pixel, apart, CHANNELS_LAST), rest_mask, 0.0)
            rest_RP = rest_RP * shrink_P[None, :] + weight_P[None, :] * value_RP.to(tl.float32)

    out += sample * (CHANNELS * PIXELS)
    dense: tl.constexpr = CHANNELS if CHANNELS_LAST else PIXELS
    tl.store(out + _tile(c, pixel, dense, CHANNELS_LAST), out_CP / sum_P[None, :], mask)
    if REST > 0:
        tl.store(out + _tile(rest, pixel, dense, CHANNELS_LAST), rest_RP / sum_P[None, :], rest_mask)
    tl.store(log_sum + sample * PIXELS + pixel, highest_P + tl.log(sum_P), on_map)


@triton.jit(do_not_specialize=["slots"])
def backward(
    table, query, grad, grad_query, log_sum, waiting, slots, scale,
    query_step, query_apart, grad_step, grad_apart,
    KEY_CHANNELS: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr, REST: tl.constexpr, BLOCK_P: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    KEY_ALIGN: tl.constexpr, ALIGN: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(PIXELS, BLOCK_P)
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    pixel = tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    on_map = pixel < PIXELS
    k = tl.arange(0, BLOCK_K)
    c = tl.arange(0, BLOCK_C)
    key_mask = (k < KEY_CHANNELS)[:, None] & on_map[None, :]
    mask = on_map[None, :]
    # The gradients of keys and values are dense.
    key_dense: tl.constexpr = KEY_CHANNELS if CHANNELS_LAST else PIXELS
    dense: tl.constexpr = CHANNELS if CHANNELS_LAST else PIXELS
    key_tile = sample * (KEY_CHANNELS * PIXELS) + _tile(k, pixel, key_dense, CHANNELS_LAST)
    grad_addresses = table + 6 * slots
    slot_step = tl.num_programs(0).to(tl.int64) // tiles * PIXELS
    weights = waiting + sample * PIXELS + pixel
    weighted = weights + slots * slot_step

    query_KP = tl.load(query + sample * query_step + _tile(k, pixel, query_apart, CHANNELS_LAST), key_mask, 0.0)
    query_KP = query_KP.to(tl.float32) * scale
    log_sum_P = tl.load(log_sum + sample * PIXELS + pixel, on_map, 0.0)
    grad += sample * grad_step
    grad_CP = tl.load(grad + _tile(c, pixel, grad_apart, CHANNELS_LAST), mask, 0.0).to(tl.float32)
    if REST > 0:
        rest = BLOCK_C + tl.arange(0, REST)
        rest_mask = (rest < CHANNELS)[:, None] & on_map[None, :]
        grad_RP = tl.load(grad + _tile(rest, pixel, grad_apart, CHANNELS_LAST), rest_mask, 0.0).to(tl.float32)
    mean_P = tl.zeros([BLOCK_P], tl.float32)
    weighted_key_KP = tl.zeros([BLOCK_K, BLOCK_P], tl.float32)
    mean_key_KP = tl.zeros([BLOCK_K, BLOCK_P], tl.float32)
    for n in tl.range(0, slots, num_stages=STAGES):
        key, key_apart = _slot(table + 3 * n, sample, query, KEY_ALIGN)
        value, apart = _slot(table + 3 * (slots + n), sample, grad, ALIGN)
        grad_value = tl.load(grad_addresses + slots + n).to(grad.dtype)
        grad_value = tl.multiple_of(grad_value, 16) + sample * (CHANNELS * PIXELS)
        key_KP = tl.load(key + _tile(k, pixel, key_apart, CHANNELS_LAST), key_mask, 0.0).to(tl.float32)
        value_CP = tl.load(value + _tile(c, pixel, apart, CHANNELS_LAST), mask, 0.0)
        weight_P = tl.exp(tl.sum(query_KP * key_KP, axis=0) - log_sum_P)
        product_P = tl.sum(grad_CP * value_CP.to(tl.float32), axis=0)
        tl.store(grad_value + _tile(c, pixel, dense, CHANNELS_LAST), weight_P[None, :] * grad_CP, mask)
        if REST > 0:
            value_RP = tl.load(value + _tile(rest, pixel, apart, CHANNELS_LAST), rest_mask, 0.0)
            product_P += tl.sum(grad_RP * value_RP.to(tl.float32), axis=0)
            tl.store(grad_value + _tile(rest, pixel, dense, CHANNELS_LAST), weight_P[None, :] * grad_RP, rest_mask)
        weighted_P = weight_P * product_P
        mean_P += weighted_P
        weighted_key_KP += weighted_P[None, :] * key_KP
        mean_key_KP += weight_P[None, :] * key_KP
        tl.store(weights + n * slot_step, weight_P, on_map)
        tl.store(weighted + n * slot_step, weighted_P, on_map)
    tl.store(grad_query + key_tile, scale * (weighted_key_KP - mean_P[None, :] * mean_key_KP), key_mask)

    tl.debug_barrier()  # what waits was stored by other threads of this program
    for n in tl.range(0, slots, num_stages=STAGES):
        weight_P = tl.load(weights + n * slot_step, on_map, 0.0)
        weighted_P = tl.load(weighted + n * slot_step, on_map, 0.0)
        grad_key = tl.multiple_of(tl.load(grad_addresses + n).to(query.dtype), 16)
        tl.store(grad_key + key_tile, (weighted_P - weight_P * mean_P)[None, :] * query_KP, key_mask)
