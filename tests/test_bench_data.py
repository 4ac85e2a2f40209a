"""The comparison is fair: all contenders deliver the same images, each once, and wrong ones are noticed."""

import io
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image

from attvae.bench import photo_crops
from attvae.bench.data import CASES, CONTENDERS, Case, Epoch, epoch, measure_loaders, summary
from attvae.bench.loaders import Contender, Task, batches, files
from attvae.bench.photo_crops import PhotoCrops

IMAGES = 42
BATCH = 16


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    case: Case = request.param
    folder = tmp_path_factory.mktemp(case.name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photo_crops, "PROCESSES", 1)  # quicker, for so few
        PhotoCrops(IMAGES, case.size, case.format).make(folder)
    return case, folder


def reference(folder: Path, size: int) -> np.ndarray:
    """The images [N, H, W, C] as Pillow reads the files; larger ones as the rounded means of squares of pixels."""
    pixels = np.stack([np.asarray(Image.open(path)) for path in files("folder", folder)])
    factor = pixels.shape[1] // size
    means = pixels.reshape(len(pixels), size, factor, size, factor, 3).mean(axis=(2, 4))
    return np.floor(means + 0.5).astype(np.uint8)


def one_epoch(loaded: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The first IMAGES images and numbers."""
    images, numbers, count = [], [], 0
    for x, ids, *_ in loaded:
        assert x.is_contiguous()
        images.append(x.numpy())
        numbers.append(ids.numpy())
        if (count := count + len(ids)) >= IMAGES:
            break
    return np.concatenate(images)[:IMAGES], np.concatenate(numbers)[:IMAGES]


@pytest.mark.parametrize("contender", CONTENDERS)
def test_contenders_deliver_the_files(contender: Contender, made: tuple[Case, Path]) -> None:
    case, folder = made
    size = case.scaled_to or case.size
    original = reference(folder, size)
    x, numbers = one_epoch(batches(contender, Task(folder, case.scaled_to, BATCH, workers=0)))
    assert x.shape == (IMAGES, 3, size, size)
    assert sorted(numbers) == list(range(IMAGES))
    assert list(numbers) != list(range(IMAGES))
    ways = set()
    for image, number in zip(x.transpose(0, 2, 3, 1), numbers, strict=True):
        mirrored = [original[number][::up, ::left] for up in (1, -1) for left in (1, -1)]
        (way,) = [way for way, flipped in enumerate(mirrored) if np.array_equal(image, flipped)]
        ways.add(way)
    assert len(ways) >= 3  # of 4; among 42 images, at most 2 come with a probability of 1e-12


@pytest.mark.parametrize("contender", CONTENDERS)
def test_workers_deliver_the_same(contender: Contender, made: tuple[Case, Path]) -> None:
    case, folder = made
    size = case.scaled_to or case.size
    found = [
        epoch(batches(contender, Task(folder, case.scaled_to, BATCH, workers)), IMAGES, (3, size, size))
        for workers in (0, 2)
    ]
    assert found[0].ids_xxh3 == found[1].ids_xxh3
    assert found[0].probe == found[1].probe


def test_shards_hold_the_files(made: tuple[Case, Path]) -> None:
    case, folder = made
    shards = [str(path) for path in files("webdataset", folder)]
    assert len(shards) == 4
    stored = list(wds.WebDataset(shards, shardshuffle=False))
    paths = files("folder", folder)
    assert [sample["__key__"] for sample in stored] == [path.stem for path in paths]
    if case.format == "raw":
        pixels = [np.load(io.BytesIO(sample["npy"])) for sample in stored]
        assert np.array_equal(pixels, [np.asarray(Image.open(path)) for path in paths])
    else:
        assert [sample[case.format] for sample in stored] == [path.read_bytes() for path in paths]


def test_images_are_different(made: tuple[Case, Path]) -> None:
    assert len({path.read_bytes() for path in files("folder", made[1])}) == IMAGES


def loaded(ids: list[int], value: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.full((len(ids), 3, 2, 2), value, dtype=torch.uint8), torch.tensor(ids))]


@pytest.mark.parametrize("ids", [[0, 1, 1, 3], [0, 1, 2], [0, 1, 2, 4]])
def test_an_epoch_that_is_none(ids: list[int]) -> None:
    with pytest.raises(RuntimeError, match="expected 4"):
        epoch(loaded(ids), 4, (3, 2, 2))


def test_a_batch_that_is_not_contiguous() -> None:
    with pytest.raises(RuntimeError, match="contiguous"):
        epoch([(x.transpose(2, 3), ids) for x, ids in loaded([0, 1])], 2, (3, 2, 2))


def test_an_epoch_ends_within_a_batch() -> None:
    found = epoch(loaded([1, 0]) + loaded([2, 0]), 3, (3, 2, 2))
    assert found.batches == 2
    assert found.probe == 12  # of image 0, once


def test_different_pixels_are_noticed() -> None:
    epochs = {
        "attvae": {0: [epoch(loaded([1, 0]), 2, (3, 2, 2))]},
        "folder": {0: [epoch(loaded([0, 1], value=2), 2, (3, 2, 2))]},
    }
    with pytest.raises(RuntimeError, match="different images"):
        summary(epochs)


def test_the_best_number_of_workers_counts() -> None:
    def rates(*images_per_s: float) -> list[Epoch]:
        return [Epoch(rate, 1 / rate, 1, "", 0) for rate in images_per_s]

    found = summary(
        {"attvae": {0: rates(70, 50, 60), 2: rates(99, 1, 2)}, "webdataset": {0: rates(9, 9, 9), 2: rates(25, 20, 10)}}
    )
    assert found["contenders"]["attvae"]["best_workers"] == 0
    assert found["contenders"]["webdataset"]["best_workers"] == 2
    assert found["contenders"]["webdataset"]["workers"]["2"]["images_per_s"] == {"median": 20, "min": 10, "max": 25}
    assert found["ratios"] == {"webdataset": {"median": 3.0, "worst": 2.0}}


@pytest.mark.parametrize(
    ("named", "settings"),
    [
        ("raw16", (["raw16"], 40, [0], 1, 8)),
        ("3 images", (None, 3, [0], 1, 8)),
        (r"workers \[-1\]", (None, 40, [-1], 1, 8)),
        ("0 repeats", (None, 40, [0], 0, 8)),
        ("batches of 0", (None, 40, [0], 1, 0)),
    ],
)
def test_bad_input(named: str, settings: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=named):
        measure_loaders(*settings, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_command(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("attvae")), "bench", "data", "--keep", str(tmp_path)]
    settings = ["--case", "png32", "--images", "40", "--workers", "1", "--repeats", "1"]
    result = subprocess.run([*command, *settings], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    case = found["cases"]["png32"]
    assert found["images"] == 40
    assert found["machine"]["webdataset"] == wds.__version__
    assert set(case["contenders"]) == set(CONTENDERS)
    assert case["contenders"]["folder"]["workers"]["1"]["images_per_s"]["median"] > 0
    assert len(list(tmp_path.glob("png32-40/shards/*.tar"))) == case["shards"] == 4
    assert "png32 webdataset, 1 workers, repeat 1 of 1" in result.stderr
