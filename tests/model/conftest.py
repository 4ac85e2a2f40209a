"""The small model of the golden fixtures, with its weights."""

import pytest
import torch
from golden.arrays import Arrays, arrays, nchw
from torch import Tensor

from attvae.model.config import (
    DepthAttentionConfig,
    LogisticMixtureConfig,
    LogScaleConfig,
    ModelConfig,
    NonLocalConfig,
    StackConfig,
)
from attvae.model.official import load_weights
from attvae.model.vae import DeepVAE
from attvae.spec import DataSpec

NON_LOCAL = NonLocalConfig(key_dim=4)

CFG1 = ModelConfig(
    num_layers=4,
    latent_channels=4,
    encoder_filters=8,
    decoder_filters=8,
    preprocessing=StackConfig(scales=(0, -2), non_local=NON_LOCAL),
    encoder=StackConfig(scales=(0, 0), non_local=NON_LOCAL),
    decoder=StackConfig(scales=(0, 0), non_local=NON_LOCAL),
    postprocessing=StackConfig(scales=(2, 0)),
    encoder_attention=DepthAttentionConfig(key_dim=4),
    decoder_attention=DepthAttentionConfig(key_dim=4),
    posterior=LogScaleConfig(low=-5, high=5),
    prior=LogScaleConfig(low=-1, high=5),
    soft_clamp="published",
    likelihood=LogisticMixtureConfig(num_mixtures=5, edges="published"),
)


@pytest.fixture(scope="session")
def cfg1_weights() -> Arrays:
    return arrays("cfg1_weights")


@pytest.fixture
def cfg1(cfg1_weights: Arrays) -> DeepVAE:
    model = DeepVAE(CFG1, DataSpec(height=16, width=16, channels=3, num_bits=8, max_value=255))
    load_weights(model, cfg1_weights)
    return model.eval()


@pytest.fixture(scope="session")
def images() -> Tensor:
    return nchw(arrays("cfg1_eval")["images"]).to(torch.uint8)


@pytest.fixture(scope="session")
def noise() -> list[Tensor]:
    evaluated = arrays("cfg1_eval")
    return [nchw(evaluated[f"eps.{i}"]) for i in range(4)]
