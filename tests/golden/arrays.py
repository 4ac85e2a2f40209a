"""Numbers computed with the authors' own code (TF 2.3.0), NHWC and HWIO. Each file's content: see README.md here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FOLDER = Path(__file__).parent

Arrays = dict[str, NDArray[Any]]


def arrays(file: str, prefix: str = "") -> Arrays:
    """The arrays of a file whose names start with the prefix, without it."""
    with np.load(FOLDER / f"{file}.npz", allow_pickle=False) as npz:
        return {name.removeprefix(prefix): npz[name] for name in npz.files if name.startswith(prefix)}


def weights(unit: Arrays) -> Arrays:
    return {name.removeprefix("w."): array for name, array in unit.items() if name.startswith("w.")}


def facts() -> dict[str, Any]:
    return json.loads((FOLDER / "cfg1.json").read_text())


def nchw(array: NDArray[Any]) -> Tensor:
    """Maps as [B, C, H, W]; other arrays as they are."""
    return torch.tensor(np.moveaxis(array, -1, 1) if array.ndim >= 4 else array)


def assert_close(found: Tensor, expected: Tensor | NDArray[Any], rtol: float = 1e-5, atol: float = 1e-5) -> None:
    """Within rtol, or within atol times the largest number expected: sums in float32 leave errors of that size."""
    if isinstance(expected, np.ndarray):
        expected = nchw(expected)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol * float(expected.abs().max()))
