"""Pickles of numbers, strings and numpy arrays, read without running anything that a pickle can name.

A pickle is a program: it may call whatever its reader's `find_class` gives it. Here that is four stand-ins for what
Python 2 and 3 call to make arrays and bytes. They are instances without attributes, so that a pickle cannot change them
either; every other name is refused.
"""

import pickle
import re
from typing import BinaryIO

import numpy as np
from numpy import ndarray


def load(file: BinaryIO, name: str) -> dict[str, object]:
    """The dictionary in a pickle, with its keys as str and its arrays as numpy's, read-only.

    Strings that Python 2 wrote come as bytes.

    Args:
        name: of the file in messages.

    Raises:
        ValueError: it is no pickle of a dictionary, cut short, or names anything but arrays of numbers.
    """
    try:
        content = _Unpickler(file, encoding="bytes").load()
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, expected a dictionary")
        return {_text(key): value.array if isinstance(value, _Array) else value for key, value in content.items()}
    except (
        pickle.UnpicklingError,
        EOFError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        OverflowError,
    ) as error:
        raise ValueError(f"{name} is no pickle of numbers and arrays, or a damaged one: {error}") from None


def _text(key: object) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)


class _Dtype:
    """What a pickle says of the type of an array's numbers."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "="

    def __setstate__(self, state: tuple[object, ...]) -> None:
        order = _text(state[1])
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError(f"an array has the byte order {order!r}")
        self.order = order


class _Array:
    """An array, whose content a pickle gives after its making."""

    __slots__ = ("array",)
    array: ndarray

    def __setstate__(self, state: tuple[object, ...]) -> None:
        match state:
            case (_, tuple(shape), _Dtype() as dtype, fortran, bytes(content)):
                flat = np.frombuffer(content, np.dtype(dtype.order + dtype.code))
                self.array = flat.reshape([int(length) for length in shape], order="F" if fortran else "C")
            case _:
                raise pickle.UnpicklingError("an array is not written as numpy writes arrays of numbers")


class _MakeArray:
    __slots__ = ()

    def __call__(self, *_: object) -> _Array:
        return _Array()


class _MakeDtype:
    __slots__ = ()

    def __call__(self, code: object, *_: object) -> _Dtype:
        if not isinstance(code, str | bytes) or not re.fullmatch(r"b1|[iu][1248]|f[248]", _text(code)):
            raise pickle.UnpicklingError(f"an array has elements of type {code!r}, expected numbers (such as u1, f8)")
        return _Dtype(_text(code))


class _Encode:
    """Python 3 writes bytes for Python 2 as text to encode."""

    __slots__ = ()

    def __call__(self, text: object, encoding: object) -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError(f"_codecs.encode is asked for {encoding!r}, expected latin1")
        return text.encode("latin1")


class _ArrayType:
    """An argument of `_reconstruct`, of which nothing is asked."""

    __slots__ = ()


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _MakeArray(),
    ("numpy._core.multiarray", "_reconstruct"): _MakeArray(),
    ("numpy", "ndarray"): _ArrayType(),
    ("numpy", "dtype"): _MakeDtype(),
    ("_codecs", "encode"): _Encode(),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (stand_in := _STAND_INS.get((module, name))) is None:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which is refused and was not run; only arrays and numbers are read"
            )
        return stand_in
