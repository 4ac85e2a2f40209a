"""The three published models can be expressed: every tensor has the name and shape that the authors' weights have."""

import csv
import gzip

import pytest
import torch
from golden.arrays import FOLDER

from attvae.model.config import (
    BernoulliConfig,
    DepthAttentionConfig,
    LogisticMixtureConfig,
    LogScaleConfig,
    ModelConfig,
    NonLocalConfig,
    StackConfig,
)
from attvae.model.official import canonical_names
from attvae.model.vae import DeepVAE
from attvae.spec import DataSpec

CIFAR10 = DataSpec(height=32, width=32, channels=3, num_bits=8, max_value=255)
OMNIGLOT = DataSpec(height=28, width=28, channels=1, num_bits=8, max_value=255, binary=True)

KEY_8, KEY_32 = NonLocalConfig(key_dim=8), NonLocalConfig(key_dim=32)

MODELS = {
    "cifar10_attn": (
        CIFAR10,
        118_974_679,
        ModelConfig(
            num_layers=16,
            latent_channels=20,
            encoder_filters=128,
            decoder_filters=128,
            preprocessing=StackConfig(scales=(0, -2), non_local=KEY_32),
            encoder=StackConfig(scales=(0, 0), non_local=KEY_32),
            decoder=StackConfig(scales=(0, 0), non_local=KEY_32),
            postprocessing=StackConfig(scales=(2, 0)),
            encoder_attention=DepthAttentionConfig(key_dim=20),
            decoder_attention=DepthAttentionConfig(key_dim=20),
            posterior=LogScaleConfig(low=-5, high=5, noise_stddev=0.001),
            prior=LogScaleConfig(low=-1, high=5, noise_stddev=0.001),
            soft_clamp="published",
            likelihood=LogisticMixtureConfig(edges="published"),
        ),
    ),
    "omniglot_attn": (
        OMNIGLOT,
        7_875_675,
        ModelConfig(
            num_layers=15,
            latent_channels=20,
            encoder_filters=32,
            decoder_filters=32,
            preprocessing=StackConfig(scales=(0, 0, -2)),
            encoder=StackConfig(scales=(0, 0)),
            decoder=StackConfig(scales=(0, 0)),
            postprocessing=StackConfig(scales=(2, 0, 0), non_local=KEY_8),
            encoder_merge=KEY_8,
            decoder_merge=KEY_8,
            encoder_attention=DepthAttentionConfig(key_dim=8, layer_norm=False),
            decoder_attention=DepthAttentionConfig(key_dim=8),
            soft_clamp="published",
            likelihood=BernoulliConfig(),
            pad=2,
        ),
    ),
    "cifar10_nvae": (
        CIFAR10,
        79_206_420,
        ModelConfig(
            num_layers=16,
            latent_channels=20,
            encoder_filters=128,
            decoder_filters=128,
            preprocessing=StackConfig(scales=(0, -2)),
            postprocessing=StackConfig(scales=(2, 0)),
            soft_clamp="published",
            likelihood=LogisticMixtureConfig(edges="published"),
        ),
    ),
}


def official_shapes(model: str) -> dict[str, tuple[int, ...]]:
    with gzip.open(FOLDER / f"h5_layout_{model}.tsv.gz", "rt") as file:
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
def test_names_shapes_and_parameter_count(name: str) -> None:
    spec, trainable, config = MODELS[name]
    with torch.device("meta"):
        model = DeepVAE(config, spec)
    names = canonical_names(model)
    found = {names[key]: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert found == {name: in_our_layout(name, shape) for name, shape in official_shapes(name).items()}
    assert sum(parameter.numel() for parameter in model.parameters()) == trainable
