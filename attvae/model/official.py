"""The authors' names and layouts of this model's tensors."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

# Our name -> theirs, applied in order. Their context layer norms do not belong to a layer.
_RENAMES = [
    (r"^encoder\.preprocessing\.", "preproc."),
    (r"^encoder\.cells\.(\d+)\.", r"layers.\1.encoder_cell."),
    (r"^layers\.(\d+)\.generative\.ctx_layer_norm\.", r"ctx_layer_norm.\1."),
    (r"^layers\.(\d+)\.(generative|inference)\.", r"layers.\1."),
    (r"^decoder\.merge\.", "final_merge."),
    (r"^decoder\.postprocessing\.", "postproc."),
    (r"^decoder\.head\.", "data_head."),
    (r"\bnon_local\.", "nonlocal."),
    (r"\bnorm\.", "bn."),
    (r"\brunning_mean$", "moving_mean"),
    (r"\brunning_var$", "moving_variance"),
    (r"\b(bn|ctx_layer_norm\.\d+|ln_(?!conv)[a-z]+)\.weight$", r"\1.gamma"),
    (r"\b(bn|ctx_layer_norm\.\d+|ln_(?!conv)[a-z]+)\.bias$", r"\1.beta"),
]


def canonical_names(module: nn.Module) -> dict[str, str]:
    """Name of each parameter and buffer of a DeepVAE, or of one of its parts, -> its canonical name."""
    return {name: _canonical_name(name) for name in module.state_dict()}


def load_weights(module: nn.Module, weights: Mapping[str, NDArray[Any]]) -> None:
    """Fills all parameters and buffers from arrays under canonical names in the authors' layouts.

    Raises:
        ValueError: an array is missing or has another shape than the tensor it is for.
    """
    state = module.state_dict()
    for name, canonical in canonical_names(module).items():
        if canonical not in weights:
            raise ValueError(f"no weights named {canonical} (for {name})")
        array = _to_torch_layout(canonical, weights[canonical])
        if array.shape != state[name].shape:
            raise ValueError(f"{canonical}: shape {array.shape} does not fit {tuple(state[name].shape)} of {name}")
        state[name] = torch.from_numpy(np.ascontiguousarray(array))
    module.load_state_dict(state)


def _canonical_name(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _to_torch_layout(canonical: str, array: NDArray[Any]) -> NDArray[Any]:
    match canonical.rpartition(".")[2], array.ndim:
        case "v", 4:
            return array.transpose(3, 2, 0, 1)  # HWIO -> OIHW
        case "v", 2:
            return array.T[:, :, None, None]  # a dense layer is a 1 x 1 convolution here
        case "constant", 4:
            return array.transpose(0, 3, 1, 2)  # NHWC -> NCHW
        case _, 0:
            return array[None]  # scalars have shape (1,) here
        case _:
            return array
