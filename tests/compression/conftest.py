"""Small models with random weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attvae import export
from attvae.data.manifest import Manifest
from attvae.export import ExportConfig, TrainedOn
from attvae.model.config import (
    BernoulliConfig,
    DepthAttentionConfig,
    LogisticMixtureConfig,
    LogScaleConfig,
    ModelConfig,
    NonLocalConfig,
    StackConfig,
)
from attvae.model.vae import DeepVAE
from attvae.spec import DataSpec

BINARY = DataSpec(height=8, width=8, channels=1, num_bits=8, max_value=255, binary=True)
COLOUR = DataSpec(height=8, width=12, channels=3, num_bits=8, max_value=255)
GREY_16 = DataSpec(height=4, width=4, channels=1, num_bits=16, max_value=65535)
FIVE_BITS = DataSpec(height=8, width=8, channels=4, num_bits=5, max_value=31)

DIGITS = DataSpec(height=8, width=8, channels=1, num_bits=5, max_value=16, binary=True)
SMALL_DIGITS = DIGITS.model_copy(update={"height": 4, "width": 4})

SPECS = {
    "digits": DIGITS,
    "small_digits": SMALL_DIGITS,
    "binary": BINARY,
    "colour": COLOUR,
    "published": COLOUR,
    "two_grids": COLOUR,
    "grey_16": GREY_16,
    "five_bits": FIVE_BITS,
}


def build(kind: str, seed: int = 0) -> DeepVAE:
    """A model of `SPECS[kind]` whose every part does something."""
    spec = SPECS[kind]
    match kind:
        case "binary" | "digits" | "small_digits":
            likelihood: BernoulliConfig | LogisticMixtureConfig = BernoulliConfig()
        case "published":
            likelihood = LogisticMixtureConfig(num_mixtures=3, edges="published")
        case _:
            likelihood = LogisticMixtureConfig(num_mixtures=2)
    attention = DepthAttentionConfig(key_dim=4, layer_norm=kind == "published", scale="learned")
    config = ModelConfig(
        num_layers=3,
        coarser_layers=(1,) if kind == "two_grids" else (),
        latent_channels=2,
        encoder_filters=4,
        decoder_filters=4,
        preprocessing=StackConfig(scales=(-2,), non_local=NonLocalConfig(key_dim=2)),
        encoder=StackConfig(scales=(0,)),
        decoder=StackConfig(scales=(0,), squeeze_excite=True),
        postprocessing=StackConfig(scales=(2,)),
        encoder_attention=attention,
        decoder_attention=attention,
        norm="batch" if kind == "published" else "group",
        init_variance=1.0,
        soft_clamp="published" if kind == "published" else "unit_slope",
        # As training leaves them: hardly a posterior is wider than its prior.
        prior=LogScaleConfig(low=-0.2, high=2),
        posterior=LogScaleConfig(low=-4, high=0.2),
        likelihood=likelihood,
        pad=1 if kind == "five_bits" else 0,
    )
    torch.manual_seed(seed)
    model = DeepVAE(config, spec)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.3)
    return model.eval()


def images_of(model: DeepVAE, number: int, seed: int = 0) -> torch.Tensor:
    """Images that the model thinks likely."""
    torch.manual_seed(seed)
    return model.sample(number)


def export_to(path: Path, kind: str, *, seed: int = 0, data: Path | None = None, forced: tuple[str, ...] = ()) -> Path:
    """The export folder of the model of that kind and seed, as if it had been trained on those data."""
    model = build(kind, seed)
    manifest = Manifest.read(data) if data else None
    trained_on = (
        TrainedOn(name=manifest.name, version=manifest.version, fingerprint=manifest.fingerprint) if manifest else None
    )
    config = ExportConfig(model=model.config, spec=model.spec, trained_on=trained_on, forced=forced)
    export.write(path, model, config, card="")
    return path


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """The export folder of the model of that kind and seed."""
    folder = tmp_path_factory.mktemp("exports")

    def export_of(kind: str, seed: int = 0) -> Path:
        path = folder / f"{kind}-{seed}"
        if not path.exists():
            export_to(path, kind, seed=seed)
        return path

    return export_of
