"""configs/imagenet32.yaml and imagenet64.yaml without ImageNet: planned on eight ranks, and held against small data
sets that the preparation writes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from array_images import ArrayImages, array_dataset
from test_cli import COMMAND, ROOT, contents, run

from attvae.config import load
from attvae.data.loader import open_manifest
from attvae.data.manifest import Manifest
from attvae.model.vae import DeepVAE
from data_prep import imagenet_npz
from data_prep.writer import prepare, prepare_unpacked

SIZES = [32, 64]


def config(size: int) -> Path:
    return ROOT / "configs" / f"imagenet{size}.yaml"


@pytest.mark.parametrize("size", SIZES)
def test_a_dry_run_needs_neither_data_nor_gpus(size: int, tmp_path: Path) -> None:
    command = [*COMMAND, "train", str(config(size)), "--dry-run"]
    result = run(command, tmp_path, RANK="0", WORLD_SIZE="8")
    assert result.returncode == 0, result.stderr
    cfg = load(config(size))
    assert cfg.data.spec is not None
    with torch.device("meta"):
        parameters = sum(p.numel() for p in DeepVAE(cfg.model, cfg.data.spec).parameters())
    assert 150e6 < parameters < 200e6
    assert f" {parameters:,} " in result.stdout
    assert f"prepare data/imagenet{size}-npz first" in result.stdout
    assert "64 micro-batch x 1 accumulated x 8 ranks" in result.stdout
    assert " 112,500 " in result.stdout
    assert contents(tmp_path) == {}


@pytest.fixture
def downloaded(tmp_path: Path, size: int) -> Path:
    """The files of image-net.org, with three images in each."""
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for batch in (*imagenet_npz.TRAIN, imagenet_npz.VAL):
        np.savez(folder / batch, data=np.zeros((3, 3 * size * size), np.uint8), labels=np.array([1, 2, 3]))
    return folder


@pytest.mark.parametrize("size", SIZES)
def test_the_data_are_those_that_the_preparation_writes(size: int, downloaded: Path, tmp_path: Path) -> None:
    out = tmp_path / "prepared"
    prepare_unpacked(lambda work: imagenet_npz.dataset(downloaded, "raw", work), out)
    cfg = load(config(size), [f"data.path={out}"])
    assert open_manifest(cfg.data).spec == cfg.data.spec == Manifest.read(out).spec


def test_the_older_imagenet_is_refused(tmp_path: Path) -> None:
    """Of the same size: only name and version tell them apart."""
    images = array_dataset(ArrayImages(np.zeros((9, 32, 32, 3), np.uint8)), name="imagenet32-png")
    source = "Bits per dimension are not comparable with those on the newer npz files: 0.26 apart"
    prepare(replace(images, version="png-vandenoord", source=source), tmp_path / "png")
    cfg = load(config(32), [f"data.path={tmp_path}/png"])
    with pytest.raises(ValueError, match=r"0\.26 apart") as refused:
        open_manifest(cfg.data)
    assert f"{tmp_path}/png holds the data set 'imagenet32-png png-vandenoord'" in str(refused.value)
    assert "data.dataset='imagenet32-npz npz'" in str(refused.value)
    stated = load(config(32), [f"data.path={tmp_path}/png", "data.dataset=imagenet32-png png-vandenoord"])
    assert open_manifest(stated.data).name == "imagenet32-png"
