"""The authors' names for this model's tensors."""

import re

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
    (r"\.non_local\.", ".nonlocal."),
    (r"\.norm\.", ".bn."),
    (r"\.running_mean$", ".moving_mean"),
    (r"\.running_var$", ".moving_variance"),
    (r"(\.bn|ctx_layer_norm\.\d+|\.ln_[a-z]+)\.weight$", r"\1.gamma"),
    (r"(\.bn|ctx_layer_norm\.\d+|\.ln_[a-z]+)\.bias$", r"\1.beta"),
]


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Name of each parameter and buffer of a DeepVAE (or one of its parts) -> its name in the authors' layout."""
    return {name: canonical_name(name) for name in model.state_dict()}


def canonical_name(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name
