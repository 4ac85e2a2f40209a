"""Net bits against the NELBO, of models that were trained for a minute, on all digits and on 256 patches."""

import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from attvae.compression.command import Compressed, compress, decompress
from attvae.data.config import DataConfig
from attvae.data.loader import eval_batches, open_manifest
from attvae.data.manifest import Split
from data_prep import photos
from data_prep.writer import prepare

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def train(config: str, data: Path, out: Path, *overrides: str) -> Path:
    always = [f"data.path={data}", "engine.name=plain", "tracking.mlflow=false", f"--out={out}"]
    command = [sys.executable, "-m", "attvae.cli", "train", str(ROOT / "configs" / config), *always, *overrides]
    subprocess.run(command, check=True, capture_output=True, timeout=550)
    return out


def check(found: Compressed, file: Path) -> None:
    per_dim = found.report()["bits_per_dim"]
    assert per_dim["net"] == pytest.approx(per_dim["nelbo_of_coded_latents"], rel=0.002)
    assert per_dim["net"] == pytest.approx(per_dim["nelbo"], rel=0.01)
    assert found.file_bytes == file.stat().st_size
    assert per_dim["net"] < per_dim["gross"]


def test_all_digits(tmp_path: Path, digits: Path) -> None:
    run = train("test/tiny.yaml", digits, tmp_path / "run")
    found = compress(run, [], tmp_path / "file", data=str(digits), draws=20)
    assert found.images == 5940
    check(found, tmp_path / "file")
    assert decompress(tmp_path / "file", run, tmp_path / "out").images == 5940


def test_256_patches_of_photographs(tmp_path: Path) -> None:
    data, patches = tmp_path / "photos32", tmp_path / "patches"
    prepare(photos.dataset(32), data)
    patches.mkdir()
    config = DataConfig(path=str(data))
    manifest = open_manifest(config)
    splits: tuple[Split, ...] = ("test", "val", "train")
    batches = (b for split in splits for b in eval_batches(manifest, config, split, 0, 0, 10, 0, 1))
    images = (x for b in batches for x, weight in zip(b.x, b.weights, strict=True) if weight)
    for number, x in enumerate(islice(images, 256)):
        Image.fromarray(x.permute(1, 2, 0).numpy()).save(patches / f"{number:03d}.png")
    samples = [f"{name}=2000" for name in ("train.samples", "train.kl_warmup", "eval.every", "checkpoint.every")]
    run = train("photos32.yaml", data, tmp_path / "run", *samples, "train.kl_start=0.5")
    found = compress(run, [patches], tmp_path / "file")
    assert found.images == 256
    check(found, tmp_path / "file")
    decompress(tmp_path / "file", run, tmp_path / "out")
    for path in patches.iterdir():
        with Image.open(path) as a, Image.open(tmp_path / "out" / path.name) as b:
            assert a.tobytes() == b.tobytes()
