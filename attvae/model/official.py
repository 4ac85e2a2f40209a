"""The authors' names, layouts, counting and regularisation of this model's tensors."""

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

# Coefficients of their penalty λ w²: given as a number; Keras' default where the regulariser is the string "l2".
L2_GIVEN, L2_DEFAULT = 1.5e-4, 0.01
_L2_BY_DEFAULT = re.compile(
    r"\bconstant$|\bctx_layer_norm\.|coder_attention\.(gamma$|ln_)|\bnonlocal\.(gamma$|ln_[ab]\.)"
)


def canonical_names(module: nn.Module) -> dict[str, str]:
    """Name of each parameter and buffer of a DeepVAE, or of one of its parts, -> its canonical name."""
    return {name: _canonical_name(name) for name in module.state_dict()}


def count_parameters(model: nn.Module) -> int:
    """The number of trained values as the authors count them: without the contexts' layer norms (`ctx_layer_norm`)."""
    return sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if not _canonical_name(name).startswith("ctx_layer_norm.")
    )


def l2_coefficients(model: nn.Module) -> dict[str, float]:
    """Name of each parameter -> λ of the authors' penalty λ w² on its values.

    1.5e-4 for kernels, gains, biases, batch norms and the non-local blocks' scales. 0.01 for the gates of all
    attentions, all layer norms and the constant context, whose regulariser the authors' code leaves to Keras' default.
    """
    return {
        name: L2_DEFAULT if _L2_BY_DEFAULT.search(_canonical_name(name)) else L2_GIVEN
        for name, _ in model.named_parameters()
    }


def load_weights(module: nn.Module, weights: Mapping[str, NDArray[Any]]) -> None:
    """Fills all parameters and buffers from arrays under canonical names in the authors' layouts.

    Raises:
        ValueError: an array is missing, has another shape than the tensor it is for, or holds NaN or infinity.
    """
    state = module.state_dict()
    for name, canonical in canonical_names(module).items():
        if canonical not in weights:
            raise ValueError(f"no weights named {canonical} (for {name})")
        array = _to_torch_layout(canonical, weights[canonical])
        if array.shape != state[name].shape:
            raise ValueError(f"{canonical}: shape {array.shape} does not fit {tuple(state[name].shape)} of {name}")
        if not np.isfinite(array).all():
            raise ValueError(f"{canonical}: {np.count_nonzero(~np.isfinite(array))} weights are NaN or infinite")
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
