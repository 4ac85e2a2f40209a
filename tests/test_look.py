"""The folder of figures and pictures that a trained model is looked at in."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from array_images import ArrayImages, array_dataset
from PIL import Image
from torch import nn

from attvae.data.config import DataConfig
from attvae.data.manifest import Manifest
from attvae.evaluation.chart import ALARM
from attvae.look import IMAGES, PICTURES, ROWS, look
from attvae.model.config import ModelConfig
from attvae.model.vae import DeepVAE
from data_prep.writer import prepare

CPU = torch.device("cpu")
CONFIG: dict[str, Any] = {
    "num_layers": 3,
    "latent_channels": 2,
    "encoder_filters": 4,
    "decoder_filters": 4,
    "norm": "group",
    "preprocessing": {"scales": [-2]},
    "encoder": {"scales": [0]},
    "decoder": {"scales": [0], "non_local": {"key_dim": 2}},
    "postprocessing": {"scales": [2]},
    "encoder_attention": {"key_dim": 4},
    "decoder_attention": {"key_dim": 4},
    "likelihood": {"kind": "bernoulli"},
}
PLAIN = {"encoder_attention": None, "decoder_attention": None, "decoder": {"scales": [0]}}
ATTENTION = {"depth_attention", "depth_attention_maps_decoder", "depth_attention_maps_encoder", "spatial_attention"}
ALWAYS = {
    "interpolations",
    "layer_kl",
    "nearest_images",
    "reconstructions",
    "resampling",
    "samples",
    "top_layers",
}


ALL = {f"{name}.png" for name in ALWAYS | ATTENTION}


def model_of(digits: Path, **changes: Any) -> tuple[DeepVAE, Manifest, DataConfig]:
    """Random weights, open gates."""
    torch.manual_seed(0)
    manifest = Manifest.read(digits)
    model = DeepVAE(ModelConfig.model_validate({**CONFIG, **changes}), manifest.spec)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)
    return model, manifest, DataConfig(path=str(digits))


@pytest.fixture(scope="module")
def looked(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("looks") / "new" / "folder"
    look(*model_of(digits), out, CPU, seed=3)
    return out


def figures_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "figures.json").read_text())


def test_every_picture_is_there_and_the_guide_lists_it(looked: Path) -> None:
    assert {path.name for path in looked.iterdir()} == {"figures.json", *ALL}
    guide = (Path(__file__).parents[1] / "docs" / "pictures.md").read_text()
    assert set(re.findall(r"^\| `(\w+)\.png`", guide, re.MULTILINE)) == ALWAYS | ATTENTION
    keys = set(re.findall(r"^\| `(\w+)`", guide, re.MULTILINE))
    assert keys == figures_of(looked).keys()
    for path in looked.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert len(set(picture.convert("RGB").get_flattened_data())) > 2, "something is drawn"


def test_figures_are_numbers_that_fit_together(looked: Path) -> None:
    figures = figures_of(looked)
    assert {*figures["pictures"]} == {*PICTURES} == {path.name for path in looked.glob("*.png")}
    assert (figures["seed"], figures["split"], figures["images"]) == (3, "test", IMAGES)
    for path in ("decoder", "encoder"):
        for layer in figures["depth_attention"][path]["layers"]:
            row = figures["depth_attention"][path]["alpha"][layer["layer"]]
            assert sum(row) == pytest.approx(1, abs=1e-5)
            assert sum(p > 0 for p in row) == layer["contexts"]
            assert 1 <= layer["effective_contexts"] <= layer["contexts"] + 1e-6
    assert len(figures["most_attended_switched_off"]["layers"]) == 1 + 3
    assert figures["top_layers"]["inferred_layers"] == [0, 1, 2, 3]
    assert len(figures["resampling"]["variance_per_layer"]) == 3
    assert figures["nearest_images"]["searched_training_images"] == 1400
    assert 0 <= figures["nearest_images"]["closer_than_test"] <= 1
    assert len(figures["spatial_attention"]["blocks"]) == 2 * 2

    def finite(value: Any) -> bool:
        if isinstance(value, dict | list):
            return all(map(finite, value.values() if isinstance(value, dict) else value))
        return not isinstance(value, float) or math.isfinite(value)

    assert finite(figures)


def test_the_same_seed_gives_the_same_files_and_leaves_the_model_as_it_was(
    looked: Path, digits: Path, tmp_path: Path
) -> None:
    (tmp_path / "samples.png").write_bytes(b"of an earlier look")
    model, *data = model_of(digits)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(99)
    random_before = torch.get_rng_state()
    given_back = look(model.train(), *data, tmp_path, CPU, seed=3)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in looked.iterdir()}
    for path in looked.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name
    assert given_back == figures_of(tmp_path)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_before)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_forward_pass_has_few_images_whatever_is_looked_at(digits: Path, tmp_path: Path) -> None:
    model, *data = model_of(digits)
    sizes: list[int] = []
    for part in (model.encoder, model.decoder, *model.layers):
        part.register_forward_pre_hook(
            lambda _, args: sizes.extend(len(arg) for arg in args if isinstance(arg, torch.Tensor))
        )
    look(model, *data, tmp_path, CPU)
    assert max(sizes) == ROWS


def test_a_model_without_attention_has_no_pictures_of_it(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "spatial_attention.png").write_bytes(b"of an earlier look at another model")
    figures = look(*model_of(digits, **PLAIN), tmp_path, CPU)
    assert {path.stem for path in tmp_path.glob("*.png")} == ALWAYS
    assert not figures.keys() & {"depth_attention", "most_attended_switched_off", "spatial_attention"}


@pytest.mark.parametrize("layers", [1, 2])
def test_a_model_of_few_layers_is_looked_at(layers: int, digits: Path, tmp_path: Path) -> None:
    figures = look(*model_of(digits, num_layers=layers), tmp_path, CPU)
    assert figures["top_layers"]["inferred_layers"] == [*range(layers + 1)]
    assert not (tmp_path / "depth_attention_maps_decoder.png").exists(), "nothing to choose from"
    assert (tmp_path / "depth_attention_maps_encoder.png").exists()


def test_a_model_that_gives_no_numbers(digits: Path, tmp_path: Path) -> None:
    model, manifest, data = model_of(digits)
    with torch.no_grad():
        next(model.decoder.parameters()).fill_(torch.nan)
    look(model, manifest, data, tmp_path, CPU)
    figures = json.loads((tmp_path / "figures.json").read_text(), parse_constant=pytest.fail)
    assert figures["top_layers"]["nelbo_nats"] == [None] * 4
    with Image.open(tmp_path / "samples.png") as picture:
        assert ALARM in {colour for _, colour in picture.getcolors(1 << 20)}


def test_images_of_two_channels_are_looked_at(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 2), np.uint8)
    prepare(array_dataset(ArrayImages(pixels)), tmp_path / "data")
    mixture = {"likelihood": {"kind": "logistic_mixture", "num_mixtures": 2}}
    model, manifest, data = model_of(tmp_path / "data", **mixture)
    figures = look(model, manifest, data, tmp_path / "looked", CPU)
    assert set(figures["pictures"]) == {f"{name}.png" for name in ALWAYS | ATTENTION}


def test_other_data_than_the_models_are_refused(digits: Path, tmp_path: Path) -> None:
    _, manifest, data = model_of(digits)
    other = manifest.spec.model_copy(update={"channels": 3, "binary": False})
    likelihood = {"kind": "logistic_mixture", "num_mixtures": 2}
    model = DeepVAE(ModelConfig.model_validate({**CONFIG, "likelihood": likelihood}), other)
    with pytest.raises(ValueError, match=r"the model takes .*channels=3.*, the data set digits holds .*channels=1"):
        look(model, manifest, data, tmp_path / "out", CPU)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("images", [1, 3])
def test_few_colour_images_of_16_bits_are_looked_at(images: int, tmp_path: Path) -> None:
    """The test split is the training split: every test image is found at distance 0."""
    pixels = np.random.default_rng(0).integers(0, 1001, (images, 8, 8, 3), dtype=np.uint16)
    prepare(array_dataset(ArrayImages(pixels), max_value=1000), tmp_path / "data")
    likelihood = {"kind": "logistic_mixture", "num_mixtures": 2}
    model, manifest, data = model_of(tmp_path / "data", likelihood=likelihood)
    figures = look(model, manifest, data.model_copy(update={"flip": "both"}), tmp_path / "out", CPU)
    assert figures["nearest_images"]["test_images"]["identical"] == figures["images"] == images
    assert figures["nearest_images"]["samples"]["min"] > 0
    assert {*figures["pictures"]} == ALL - ({"interpolations.png"} if images == 1 else set())
