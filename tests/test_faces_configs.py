"""configs/celeba64.yaml and ffhq256.yaml without pictures: planned on eight ranks, with the memory that they need."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import COMMAND, ROOT, contents, run
from test_show_scale import row

from attvae.config import load
from attvae.data.loader import open_manifest
from attvae.model.vae import DeepVAE
from data_prep import folder
from data_prep.writer import prepare

CASES = [
    ("celeba64", 64, {(20, 8, 8): 8, (20, 16, 16): 8, (20, 32, 32): 8}, "32 micro-batch x 1 accumulated x 8 ranks"),
    pytest.param(
        "ffhq256",
        256,
        {(20, 8, 8): 8, (20, 16, 16): 10, (20, 32, 32): 10, (20, 64, 64): 8},
        "8 micro-batch x 1 accumulated x 8 ranks",
        marks=pytest.mark.slow,  # two images of 256 x 256 forward
    ),
]


@pytest.mark.parametrize(("name", "size", "layers", "batch"), CASES)
def test_a_dry_run_tells_the_memory(
    name: str, size: int, layers: dict[tuple[int, ...], int], batch: str, tmp_path: Path
) -> None:
    config = ROOT / "configs" / f"{name}.yaml"
    command = [*COMMAND, "train", str(config), "--dry-run", "--nodes", "1", "--gpus-per-node", "8"]
    result = run(command, tmp_path, timeout_s=600)
    assert result.returncode == 0, result.stderr
    cfg = load(config)
    assert cfg.data.spec is not None
    with torch.device("meta"):
        model = DeepVAE(cfg.model, cfg.data.spec)
    parameters = sum(p.numel() for p in model.parameters())
    assert {shape: model.latent_shapes.count(shape) for shape in model.latent_shapes} == layers
    assert f" {parameters:,} " in result.stdout
    assert f"prepare data/{name} first" in result.stdout
    assert row(result.stdout, "global batch") == [batch]
    (said,) = re.findall(r"^# .*?(\d+\.\d) GB on each GPU", config.read_text(), re.MULTILINE)
    in_this_run = float(row(result.stdout, "together")[cfg.engine.stage])
    assert f"{in_this_run:.1f}" == said
    assert in_this_run < 80
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(("name", "size"), [("celeba64", 64), ("ffhq256", 256)])
def test_the_data_are_those_that_the_preparation_writes(name: str, size: int, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(10):
        Image.fromarray(np.full((size + i, size, 3), i, np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
    prepare(folder.dataset(tmp_path / "pictures", size, "raw", None), tmp_path / "out")
    cfg = load(ROOT / "configs" / f"{name}.yaml", [f"data.path={tmp_path}/out"])
    assert open_manifest(cfg.data).spec == cfg.data.spec
