"""Random numbers as pure functions of (seed, purpose, place): ranks, accumulation and resume change nothing.

Philox is counter based: key = (seed, purpose), counter = place. Streams never overlap and cost no state.
"""

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt64
from numpy import ndarray
from torch import Tensor


class Purpose(IntEnum):
    """What random numbers are for. Values are part of the data order: never renumber."""

    ORDER = 1
    AUGMENT = 2
    LATENT = 3
    EVALUATE = 4
    BINARISE = 5
    SAMPLE = 6
    MODULE = 7
    EVALUATE_BINARISE = 8
    COMPRESS = 9


def generator(seed: int, purpose: Purpose, major: int = 0, minor: int = 0) -> np.random.Generator:
    """A generator for one place, e.g. (epoch, sample id) or (sample id, draw)."""
    # As uint64 from the start: numpy makes floats of a list that holds a number of 2^63 or more.
    key, counter = np.array([seed, purpose], np.uint64), np.array([0, 0, minor, major], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.generator = np.random.Generator(np.random.Philox(0))


_own = _PerThread()


def generators(seed: int, purpose: Purpose, places: Iterable[tuple[int, int]]) -> Iterator[np.random.Generator]:
    """`generator` at each (major, minor) in turn, for a fifth of its cost.

    It is always this thread's one generator, put there: what is to be drawn at a place is drawn before the next is
    asked for.
    """
    at, counter = _own.generator, np.zeros(4, np.uint64)
    state = {
        "bit_generator": "Philox",
        "state": {"key": np.array([seed, purpose], np.uint64), "counter": counter},
        "buffer": np.zeros(4, np.uint64),
        "buffer_pos": 4,  # used up
        "has_uint32": 0,
        "uinteger": 0,
    }
    for major, minor in places:
        counter[2], counter[3] = minor, major
        at.bit_generator.state = state
        yield at


_MULTIPLIERS = np.array([[0xD2E7470EE14C6C93], [0xCA5A826395121157]], np.uint64)
_WEYL = np.array([[0x9E3779B97F4A7C15], [0xBB67AE8584CAA73B]], np.uint64)
_ROUNDS = 10


def words(
    seed: int, purpose: Purpose, major: Int64[ndarray, "b"], minor: Int64[ndarray, "b"]
) -> UInt64[ndarray, "b 4"]:
    """The first four raw words of `generator` at each of B places, without making B generators.

    Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", table 2 and section 4.3), on
    arrays.
    """
    half, low = np.uint64(32), np.uint64(2**32 - 1)
    a_high, a_low = _MULTIPLIERS >> half, _MULTIPLIERS & low
    key = np.array([[seed], [purpose]], np.uint64)
    even, odd = np.empty((2, 2, len(major)), np.uint64)  # counter words 0 and 2, 1 and 3
    even[0], even[1] = 1, minor  # numpy counts up before it draws
    odd[0], odd[1] = 0, major
    for _ in range(_ROUNDS):
        high, rest = even >> half, even & low
        cross = a_high * rest
        middle = (a_low * rest >> half) + (cross & low) + a_low * high
        upper = a_high * high + (cross >> half) + (middle >> half)
        even, odd = upper[::-1] ^ odd ^ key, (_MULTIPLIERS * even)[::-1]
        key = key + _WEYL
    return np.stack([even[0], odd[0], even[1], odd[1]], axis=1)


def torch_seed(seed: int, purpose: Purpose, major: int = 0, minor: int = 0) -> int:
    """A 63-bit seed for torch's own generators."""
    return int(generator(seed, purpose, major, minor).integers(2**63))


def latent_noise(
    seed: int, purpose: Purpose, places: Sequence[tuple[int, int]], shapes: Sequence[tuple[int, ...]]
) -> list[Tensor]:
    """Standard normal noise for the latent layers.

    Args:
        places: (major, minor) of each of B samples: (global position, 0) in training, (sample id, draw) in evaluation.
        shapes: the shape (Z, h, w) of each of L latent layers, the first layer first.

    Returns:
        L float32 tensors [B, Z, h, w]; row b depends on nothing but (seed, purpose, places[b], shapes).
    """
    sizes = [math.prod(shape) for shape in shapes]
    rows = np.empty((len(places), sum(sizes)), dtype=np.float32)
    for row, at in zip(rows, generators(seed, purpose, places), strict=True):
        at.standard_normal(out=row, dtype=np.float32)
    flat = torch.from_numpy(rows)
    parts = torch.split(flat, sizes, dim=1)
    return [part.reshape(len(places), *shape) for part, shape in zip(parts, shapes, strict=True)]


def pixel_noise(
    seed: int, purpose: Purpose, places: Sequence[tuple[int, int]], shape: tuple[int, int, int]
) -> Float[Tensor, "b u h w"]:
    """Uniform noise in [0, 1), float32; row b depends on nothing but (seed, purpose, places[b], shape)."""
    rows = np.empty((len(places), math.prod(shape)), dtype=np.float32)
    for row, at in zip(rows, generators(seed, purpose, places), strict=True):
        at.random(out=row, dtype=np.float32)
    return torch.from_numpy(rows).view(len(places), *shape)
