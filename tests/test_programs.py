"""Encoder and sampler as programs, run where attvae is not imported, against the model itself."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from attvae import programs
from attvae.model.config import (
    BernoulliConfig,
    DepthAttentionConfig,
    LogisticMixtureConfig,
    ModelConfig,
    NonLocalConfig,
    StackConfig,
)
from attvae.model.vae import DeepVAE
from attvae.spec import DataSpec

NON_LOCAL = NonLocalConfig(key_dim=4)
PLAIN = DepthAttentionConfig(key_dim=4, layer_norm=False, scale="learned")

PUBLISHED = ModelConfig(  # all that the published models are made of
    num_layers=3,
    latent_channels=2,
    encoder_filters=4,
    decoder_filters=4,
    norm="batch",
    preprocessing=StackConfig(scales=(-2,), num_nodes=1, non_local=NON_LOCAL),
    encoder=StackConfig(scales=(0,), num_nodes=1, squeeze_excite=True),
    decoder=StackConfig(scales=(0,), num_nodes=1, non_local=NON_LOCAL),
    postprocessing=StackConfig(scales=(2,), num_nodes=1),
    encoder_attention=DepthAttentionConfig(key_dim=4),
    decoder_attention=DepthAttentionConfig(key_dim=4),
    soft_clamp="published",
    likelihood=LogisticMixtureConfig(num_mixtures=2, edges="published"),
)
BINARY = ModelConfig(
    num_layers=2,
    latent_channels=2,
    encoder_filters=4,
    decoder_filters=4,
    norm="group",
    preprocessing=StackConfig(scales=(-2,), num_nodes=1),
    encoder=StackConfig(scales=(0,), num_nodes=1),
    decoder=StackConfig(scales=(0,), num_nodes=1),
    postprocessing=StackConfig(scales=(2,), num_nodes=1),
    encoder_attention=PLAIN,
    decoder_attention=PLAIN,
    likelihood=BernoulliConfig(),
    pad=1,
)
RGB = DataSpec(height=8, width=8, channels=3, num_bits=8, max_value=255)
DIGITS = DataSpec(height=6, width=6, channels=1, num_bits=5, max_value=16, binary=True)
SEVERAL_GRIDS = BINARY.model_copy(update={"num_layers": 3, "coarser_layers": (1, 1)})
CASES = {"published": (PUBLISHED, RGB), "binary": (BINARY, DIGITS), "several grids": (SEVERAL_GRIDS, DIGITS)}

LOAD = """
import sys
import numpy, torch
for batch in (1, 5):
    given = {name: torch.from_numpy(value) for name, value in numpy.load(f"given-{batch}.npz").items()}
    encode = torch.export.load("encoder.pt2").module()
    sample = torch.export.load("sampler.pt2").module()
    latents = encode(x=given["x"], noise=given["noise"])
    pixels, head = sample(**{name: given[name] for name in ("noise", "temperature", "pixel_noise")})
    numpy.savez(f"found-{batch}.npz", latents=latents.numpy(), pixels=pixels.numpy(), head=head.numpy())
assert not [name for name in sys.modules if name.startswith("attvae")]
"""


@pytest.fixture(params=["binary", "several grids", pytest.param("published", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest) -> DeepVAE:
    torch.manual_seed(3)
    model = DeepVAE(*CASES[request.param]).eval()
    with torch.no_grad():  # trained models have gates and scales that are not where they began
        for name, p in model.named_parameters():
            if name.endswith("gamma"):
                p.fill_(0.7)
    return model


def layers_joined(layers: list[Tensor]) -> Tensor:
    """Side by side: as one tensor has them where all are alike."""
    shapes = {layer.shape for layer in layers}
    return torch.stack(layers, dim=1) if len(shapes) == 1 else torch.cat([each.flatten(1) for each in layers], dim=1)


def given(model: DeepVAE, batch: int) -> dict[str, Tensor]:
    torch.manual_seed(batch)
    top = 1 if model.spec.binary else model.spec.max_value
    noise = layers_joined([torch.randn(batch, *shape) for shape in model.latent_shapes])
    return {
        "x": torch.randint(0, top + 1, (batch, *model.spec.shape), dtype=torch.uint8),
        "noise": noise,
        "temperature": torch.tensor(0.6),
        "pixel_noise": torch.rand(batch, *model.pixel_noise_shape),
    }


def expected(model: DeepVAE, given: dict[str, Tensor]) -> dict[str, Tensor]:
    batch = len(given["noise"])
    noise = [*given["noise"].view(batch, -1).split([math.prod(shape) for shape in model.latent_shapes], dim=1)]
    noise = [eps.view(batch, *shape) for eps, shape in zip(noise, model.latent_shapes, strict=True)]
    return {
        "latents": layers_joined(model.encode(given["x"], noise)),
        "pixels": model.sample(batch, 0.6, noise, given["pixel_noise"]),
        "head": model.sample_head(batch, 0.6, noise),
    }


def check(found: dict[str, np.ndarray], wanted: dict[str, Tensor], tolerance: float) -> None:
    for name in ("latents", "head"):
        assert found[name].shape == wanted[name].shape
        np.testing.assert_allclose(found[name], wanted[name].numpy(), rtol=tolerance, atol=tolerance)
    assert found["pixels"].dtype == np.uint8
    np.testing.assert_array_equal(found["pixels"], wanted["pixels"].numpy())


def test_torch_programs_compute_what_the_model_does_without_attvae(model: DeepVAE, tmp_path: Path) -> None:
    programs.write(tmp_path, model, ["torch-export"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.pt2", "sampler.pt2"]
    for batch in (1, 5):
        np.savez(tmp_path / f"given-{batch}.npz", **{name: t.numpy() for name, t in given(model, batch).items()})
    subprocess.run([sys.executable, "-I", "-c", LOAD], cwd=tmp_path, check=True, timeout=120)
    for batch in (1, 5):
        found = dict(np.load(tmp_path / f"found-{batch}.npz"))
        check(found, expected(model, given(model, batch)), 1e-5)


@pytest.mark.slow
def test_onnx_programs_compute_what_the_model_does(model: DeepVAE, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    programs.write(tmp_path, model, ["onnx"])
    encode, sample = (onnxruntime.InferenceSession(tmp_path / f"{name}.onnx") for name in ("encoder", "sampler"))
    for batch in (1, 5):
        arrays = {name: t.numpy() for name, t in given(model, batch).items()}
        [latents] = encode.run(["latents"], {name: arrays[name] for name in ("x", "noise")})
        inputs = {name: arrays[name] for name in ("noise", "temperature", "pixel_noise")}
        pixels, head = sample.run(["pixels", "head"], inputs)
        wanted = expected(model, given(model, batch))
        check({"latents": latents, "pixels": pixels, "head": head}, wanted, 1e-4)


def test_what_cannot_be_written_is_said(model: DeepVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'tflite' is none of torch-export, onnx"):
        programs.parse_formats("onnx,tflite")
    assert programs.parse_formats("onnx, torch-export") == ("torch-export", "onnx")
    assert programs.parse_formats("") == ()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'attvae\[onnx\]'"):
        programs.write(tmp_path, model, ["torch-export", "onnx"])
    assert not [*tmp_path.iterdir()]
