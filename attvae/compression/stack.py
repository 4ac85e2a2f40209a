"""The stack of bits that is pushed to and popped from: asymmetric numeral systems, of the constriction library.

What is popped under a distribution without having been pushed is a draw from it; pushed again under the same
distribution, it gives the same bits back. All vectors are popped in their own order and pushed in the reverse one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, UInt32
from numpy import ndarray

from attvae.seeding import Purpose, generator

try:
    import constriction
except ModuleNotFoundError as missing:  # an extra of its own: nothing else needs it
    raise ValueError("compression needs the package constriction: pip install 'attvae[compress]'") from missing

PRECISION = 24
"""Bits of a probability in constriction's coder: what one value takes at most."""

WORD = 32


class CoderFailedError(ValueError):
    """The coder gave up, on numbers that no sound file leads to."""


class Initial(NamedTuple):
    """The random bits that a stack starts with: the same for whoever knows this."""

    seed: int
    words: int

    def content(self) -> UInt32[ndarray, "words"]:
        words = generator(self.seed, Purpose.COMPRESS).integers(2**WORD, size=self.words, dtype=np.uint32)
        words[-1] |= 1 << (WORD - 1)  # a stack's last word is never zero
        return words


class Stack:
    """Knows how many of its lowest words nobody has touched: they need not be stored."""

    def __init__(self, words: UInt32[ndarray, "n"]) -> None:
        self._ans: Any = constriction.stream.stack.AnsCoder(words)
        self._untouched = len(words)
        self._note_depth()

    @property
    def bits(self) -> int:
        return int(self._ans.num_valid_bits())

    @property
    def untouched(self) -> int:
        return self._untouched

    def words(self) -> UInt32[ndarray, "n"]:
        return self._ans.get_compressed()

    def pop(self, family: Any, *parameters: Float64[ndarray, "n *m"]) -> Int32[ndarray, "n"]:
        with _no_panic():
            symbols = self._ans.decode(family, *parameters)
        self._note_depth()
        return symbols

    def push(self, symbols: Int32[ndarray, "n"], family: Any, *parameters: Float64[ndarray, "n *m"]) -> None:
        """
        Raises:
            ValueError: a symbol that its distribution does not have, or none that is sound.
        """
        try:
            with _no_panic():
                self._ans.encode_reverse(symbols, family, *parameters)
        except KeyError as error:
            raise ValueError("a value comes from where its distribution has none") from error
        self._note_depth()

    def _note_depth(self) -> None:
        """The coder keeps its last 64 bits apart from the words below."""
        self._untouched = min(self._untouched, int(self._ans.pos()[0]))


def binned_gaussian(reach: int) -> Any:
    """Takes mean and stddev in bins; the bins are -reach ... reach."""
    return constriction.stream.model.QuantizedGaussian(-reach, reach)


def bernoulli() -> Any:
    """Takes the probability of a one."""
    return constriction.stream.model.Bernoulli(perfect=False)


def categorical() -> Any:
    """Takes a row of probabilities for each symbol."""
    return constriction.stream.model.Categorical(perfect=False)


@contextmanager
def _no_panic() -> Iterator[None]:
    """A panic of constriction's Rust is no Exception, and its class cannot be imported."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise CoderFailedError(f"the coder fails: {error}") from error
