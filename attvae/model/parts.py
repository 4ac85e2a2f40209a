"""What the parts of the model are called where time and arithmetic are told apart."""

import re
from collections.abc import Iterator

from torch import nn

PARTS = {
    "encoder: pre-processing": r"encoder\.preprocessing\.\d+",
    "encoder: cells": r"encoder\.cells\.\d+",
    "generative path: merges": r"layers\.\d+\.generative\.merge_decoder",
    "generative path: cells": r"layers\.\d+\.generative\.decoder_cell",
    "generative path: context norms": r"layers\.\d+\.generative\.ctx_layer_norm",
    "generative path: depth-wise attention": r"layers\.\d+\.generative\.decoder_attention",
    "generative path: prior heads": r"layers\.\d+\.generative\.prior_head",
    "inference path: merges": r"layers\.\d+\.inference\.merge_encoder",
    "inference path: depth-wise attention": r"layers\.\d+\.inference\.encoder_attention",
    "inference path: posterior heads": r"layers\.\d+\.inference\.posterior_head",
    "decoder: merge": r"decoder\.merge",
    "decoder: post-processing": r"decoder\.postprocessing",
    "decoder: head": r"decoder\.head",
}
"""Part -> the names of its modules, as a regular expression. Together they hold all modules that compute."""


def parts(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """(part, name, module) of each of those modules."""
    for name, module in model.named_modules():
        for part, pattern in PARTS.items():
            if re.fullmatch(pattern, name):
                yield part, name, module
