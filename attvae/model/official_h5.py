"""The authors' published weights: a Keras h5 file, read by position.

Names inside such a file carry counters that depend on what the process built before, so a weight is known by its place:
the group's in the root's `layer_names`, its own in the group's `weight_names`. The last part of its name and its shape
must be those that the model has at that place.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from attvae.model.official import canonical_names, load_weights

# Siblings in the order of the file. The gates of depth-wise attention belong to the layer itself and come first.
_ORDER = (
    "final_merge", "postproc", "data_head", "preproc", "layers", "ctx_layer_norm",
    "decoder_gamma", "encoder_gamma", "encoder_cell", "constant", "decoder_cell", "merge_decoder", "merge_encoder",
    "posterior_head", "prior_head", "decoder_attention", "encoder_attention",
    "ln_value", "ln_cond", "ln_attn", "ln_context",
    "blocks", "stem", "shortcut", "nodes",
    "conv", "conv_b", "conv_a", "conv_1", "conv_2", "conv_3", "conv_4", "bn", "se", "nonlocal", "fc1", "fc2",
    "gamma", "beta", "query", "key", "value", "scale", "ln_a", "ln_b", "ln_conv",
    "v", "log_g", "bias", "initialized", "moving_mean", "moving_variance",
)  # fmt: skip
_RANK = {name: rank for rank, name in enumerate(_ORDER)}
_LEAVES = {"v": "kernel", "log_g": "g", "encoder_attention.gamma": "enc_gamma"}


class Weight(NamedTuple):
    """A weight's canonical name, the last part of its name in the file, and its shape in the authors' layout."""

    name: str
    leaf: str
    shape: tuple[int, ...]


def layout(model: nn.Module) -> list[list[Weight]]:
    """The groups of a DeepVAE's file, each with its weights: trained ones, then the others. Meta tensors will do."""
    names, state = canonical_names(model), model.state_dict()
    trained = {names[name] for name, _ in model.named_parameters()}
    shapes = {names[name]: _in_authors_layout(names[name], tuple(tensor.shape)) for name, tensor in state.items()}
    for name in [name for name in shapes if name.endswith(".log_g")]:
        shapes[name.removesuffix("log_g") + "initialized"] = ()
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in shapes:
        groups.setdefault(_group(name), []).append(name)
    if any(".decoder_attention." in name for name in shapes):
        for i in range(2):  # their layers 0 and 1 have such norms too, which nothing calls
            groups[_RANK["ctx_layer_norm"], i] = []
    return [
        [Weight(name, _leaf(name), shapes[name]) for name in sorted(groups[group], key=lambda n: _place(n, trained))]
        for group in sorted(groups)
    ]


def read_h5(path: Path, model: nn.Module) -> None:
    """Fills a DeepVAE of the same configuration with the weights of the authors' file.

    Raises:
        ValueError: the file is not one of Keras' weights, is damaged, or is one of another model (then: the place, what
            the file has there and what the model has), or h5py is missing.
    """
    try:
        import h5py
    except ImportError as error:
        raise ValueError("reading h5 files needs h5py: pip install 'attvae[official]'") from error
    try:
        with h5py.File(path, "r") as file:
            weights = dict(_weights(path, file, layout(model)))
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is not a readable h5 file of Keras weights: {error}") from error
    load_weights(model, weights)


def _weights(path: Path, file: Any, expected: list[list[Weight]]) -> Iterator[tuple[str, NDArray[Any]]]:
    group_names = _names(file, "layer_names", f"{path}: the file")
    if len(group_names) != len(expected):
        raise ValueError(
            f"{path}: the file has {len(group_names)} groups, but this model's has {len(expected)}: it is of another "
            "configuration"
        )
    for place, (group_name, group) in enumerate(zip(group_names, expected, strict=True)):
        where = f"{path}: group {place} ({group_name})"
        names = _names(file[group_name], "weight_names", where)
        for i, (name, weight) in enumerate(zip(names, group, strict=False)):
            leaf, dataset = name.rpartition("/")[2].partition(":")[0], file[group_name][name]
            shape = getattr(dataset, "shape", None)
            if leaf != weight.leaf or shape != weight.shape:
                raise ValueError(
                    f"{where}, weight {i}: the file has {leaf} {shape} ({name}), but this model has "
                    f"{weight.leaf} {weight.shape} ({weight.name}) there: the file is of another configuration"
                )
            if dataset.dtype != (bool if leaf == "initialized" else np.float32):
                raise ValueError(f"{where}, weight {i}: {name} is of type {dataset.dtype}, not float32")
            if leaf != "initialized":
                yield weight.name, dataset[()]
        if len(names) != len(group):
            raise ValueError(
                f"{where}: the file has {len(names)} weights, but this model has {len(group)} there: the file is of "
                "another configuration"
            )


def _names(group: Any, attribute: str, where: str) -> list[str]:
    """A list of names, which Keras cuts into attributes name0, name1, ... where it is long."""
    if attribute in group.attrs:
        chunks = [group.attrs[attribute]]
    else:
        chunks = []
        while (chunk := f"{attribute}{len(chunks)}") in group.attrs:
            chunks.append(group.attrs[chunk])
        if not chunks:
            raise ValueError(f"{where} has no attribute {attribute}: not weights as Keras saves them")
    return [name.decode() if isinstance(name, bytes) else str(name) for chunk in chunks for name in chunk]


def _group(name: str) -> tuple[int, ...]:
    """Post-processing and data head share a group; stacks, layers and norms have one each."""
    first, second, *_ = name.split(".")
    if first == "data_head":
        first = "postproc"
    return (_RANK[first], int(second)) if first in ("preproc", "layers", "ctx_layer_norm") else (_RANK[first],)


def _place(name: str, trained: set[str]) -> tuple[bool, list[int]]:
    path = name.replace("decoder_attention.gamma", "decoder_gamma").replace("encoder_attention.gamma", "encoder_gamma")
    return name not in trained, [int(part) if part.isdigit() else _RANK[part] for part in path.split(".")]


def _leaf(name: str) -> str:
    return _LEAVES.get(".".join(name.split(".")[-2:])) or _LEAVES.get(last := name.rpartition(".")[2], last)


def _in_authors_layout(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    match name.rpartition(".")[2], shape:
        case "v", (out, into, _, _) if ".se." in name:
            return (into, out)  # a dense layer
        case "v", (out, into, height, width):
            return (height, width, into, out)
        case "constant", (batch, channels, height, width):
            return (batch, height, width, channels)
        case (("gamma" | "scale"), (1,)) if ".bn." not in name and ".ln_" not in name:
            return ()
        case _:
            return shape
