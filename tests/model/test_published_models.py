"""The published configurations: every tensor has the name and shape that the authors' weights have."""

import csv
import gzip
from pathlib import Path

import pytest
import torch
import yaml
from golden.arrays import FOLDER

from attvae.model.config import ModelConfig
from attvae.model.official import canonical_names, count_parameters
from attvae.model.vae import DeepVAE
from attvae.spec import DataSpec

CONFIGS = Path(__file__).parents[2] / "configs" / "paper"
CIFAR10 = DataSpec(height=32, width=32, channels=3, num_bits=8, max_value=255)
CHARACTERS = DataSpec(height=28, width=28, channels=1, num_bits=8, max_value=255, binary=True)

# Images, the authors' count, that of all trained variables, the file of names.
MODELS = {
    "cifar10_attvae16": (CIFAR10, 118_966_391, 118_974_679, "h5_layout_cifar10_attn"),
    "omniglot_attvae15": (CHARACTERS, 7_873_595, 7_875_675, "h5_layout_omniglot_attn"),
    "mnist_attvae15": (CHARACTERS, 7_873_595, 7_875_675, "h5_layout_omniglot_attn"),
    "cifar10_nvae16": (CIFAR10, 79_206_420, 79_206_420, "h5_layout_cifar10_nvae"),
}


def on_meta_device(name: str) -> DeepVAE:
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"]
    with torch.device("meta"):
        return DeepVAE(ModelConfig.model_validate(config), MODELS[name][0])


def official_shapes(layout: str) -> dict[str, tuple[int, ...]]:
    with gzip.open(FOLDER / f"{layout}.tsv.gz", "rt") as file:
        next(file)
        rows = list(csv.DictReader((line.removeprefix("#") for line in file), delimiter="\t"))
    return {
        row["canonical"]: () if row["shape"] == "scalar" else tuple(map(int, row["shape"].split("x")))
        for row in rows
        if row["index"] != "-" and not row["canonical"].endswith(".initialized")
    }


def in_our_layout(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if name.endswith(".v"):
        height, width, channels_in, channels_out = shape
        return (channels_out, channels_in, height, width)
    if name.endswith(".constant"):
        batch, height, width, channels = shape
        return (batch, channels, height, width)
    return shape or (1,)


@pytest.mark.parametrize("name", MODELS)
def test_names_shapes_and_parameter_counts(name: str) -> None:
    _, as_published, trained, layout = MODELS[name]
    model = on_meta_device(name)
    names = canonical_names(model)
    found = {names[key]: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert found == {name: in_our_layout(name, shape) for name, shape in official_shapes(layout).items()}
    assert count_parameters(model) == as_published
    assert sum(parameter.numel() for parameter in model.parameters()) == trained


@pytest.mark.slow
def test_the_largest_trains_on_an_image_on_the_cpu() -> None:
    config = yaml.safe_load((CONFIGS / "cifar10_attvae16.yaml").read_text())["model"]
    torch.manual_seed(0)
    model = DeepVAE(ModelConfig.model_validate(config), CIFAR10)
    model(torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)).nelbo_nats.mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
