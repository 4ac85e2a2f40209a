"""A run whose model has several grids, from training to compressed images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from launched import PLAIN, command, run
from PIL import Image
from typer.testing import CliRunner

import attvae
from attvae.cli import app
from attvae.compression.command import compress, decompress

GRIDS = ["model.coarser_layers=[1]", "train.samples=1000", "eval.every=500", "checkpoint.every=500"]
LATENTS = [(4, 2, 2), (4, 4, 4), (4, 4, 4)]


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits of 8 x 8: latents of 2 x 2, then of 4 x 4."""
    out = tmp_path_factory.mktemp("runs") / "two grids"
    run(command(digits, out, PLAIN, *GRIDS))
    return out


def summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


def test_all_figures_and_pictures_are_there(finished: Path) -> None:
    figures = summary(finished)
    assert figures["test"]["active_units"]["units"] == 4 * (2 * 2 + 2 * 4 * 4)
    assert len(figures["test"]["kl_nats_per_layer"]) == len(LATENTS)
    assert figures["test_without_depth_attention"]["nelbo_nats"] != figures["test"]["nelbo_nats"]
    page = (finished / "report.html").read_text()
    for name in ("depth_attention", "top_layers", "resampling", "interpolations"):
        assert f'data-picture="{name}"' in page
    assert "3 latent layers (1 of 4×2×2, 2 of 4×4×4)" in (finished / "model" / "README.md").read_text()


def test_it_goes_on_from_a_checkpoint(finished: Path, digits: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "resumed")
    (out / "summary.json").unlink()
    shutil.rmtree(out / "checkpoints" / "000000001000")
    output = run(command(digits, out, PLAIN, *GRIDS))
    assert "000000000500" in output
    assert summary(out)["test"]["nelbo_nats"] == pytest.approx(summary(finished)["test"]["nelbo_nats"], rel=1e-9)


def attvae_command(*arguments: object) -> None:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output


def test_export_and_program_draw_the_same_samples(finished: Path, tmp_path: Path) -> None:
    attvae_command("export", finished, "--out", tmp_path / "export", "--with", "torch-export")
    drawn = {}
    for name, source in (("run", finished), ("export", tmp_path / "export")):
        attvae_command("sample", source, "--n", 5, "--out", tmp_path / f"{name}.npy")
        drawn[name] = np.load(tmp_path / f"{name}.npy")
    assert np.array_equal(drawn["run"], drawn["export"])
    model = attvae.load(tmp_path / "export")
    assert model.latent_shapes == LATENTS
    noise = [torch.randn(5, *shape) for shape in LATENTS]
    uniform = torch.rand(5, *model.pixel_noise_shape)
    program = torch.export.load(tmp_path / "export" / "sampler.pt2").module()
    flat = torch.cat([eps.flatten(1) for eps in noise], dim=1)
    pixels, _ = program(noise=flat, temperature=torch.tensor(0.7), pixel_noise=uniform)
    assert torch.equal(pixels, model.sample(5, 0.7, noise, uniform))
    assert f"noise [B, {4 * 2 * 2 + 2 * 4 * 4 * 4}]" in (tmp_path / "export" / "README.md").read_text()


def test_compressed_images_come_back(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i, x in enumerate(attvae.load(finished / "model").sample(6)):
        Image.fromarray(x[0].numpy() * 255).save(tmp_path / "images" / f"{i}.png")
    assert compress(finished / "model", [tmp_path / "images"], tmp_path / "file", batch=4).images == 6
    decompress(tmp_path / "file", finished / "model", tmp_path / "out")
    for path in (tmp_path / "images").iterdir():
        with Image.open(path) as given, Image.open(tmp_path / "out" / path.name) as back:
            assert np.array_equal(np.asarray(given) > 0, np.asarray(back) > 0)


@pytest.mark.slow
def test_zero_stage_3_trains_it_as_plain_torch_does(finished: Path, digits: Path, tmp_path: Path) -> None:
    """No parameter is whole outside of its module."""
    out = tmp_path / "stage 3"
    run(command(digits, out, "engine.stage=3", "engine.persistent_parameters=0", *GRIDS))
    assert summary(out)["test"]["nelbo_nats"] == pytest.approx(summary(finished)["test"]["nelbo_nats"], rel=1e-4)
