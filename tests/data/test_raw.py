"""The gathered batches against the images that were stored, and against what plain webdataset reads."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from attvae.data import raw
from attvae.data.manifest import Manifest
from attvae.data.raw import RawImages
from attvae.data.tar import OpenShards
from attvae.spec import DataSpec

SPEC = DataSpec(height=4, width=6, channels=3, num_bits=8, max_value=255)


def raw_images(files: list[tuple[Path, int]], spec: DataSpec = SPEC) -> RawImages:
    shards = OpenShards(
        lambda n: os.open(files[n][0], os.O_RDONLY), [(str(path), samples) for path, samples in files], kept=9
    )
    return RawImages(shards, spec)


@pytest.fixture
def files(prepare_images: Callable[..., Manifest], images: np.ndarray, tmp_path: Path) -> list[tuple[Path, int]]:
    manifest = prepare_images(images)
    return [(tmp_path / "images" / shard.file, shard.samples) for shard in manifest.shards("train")]


@pytest.fixture
def read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The places that the fast path left to the slow one."""
    seen: list[object] = []
    slow = raw.decode
    monkeypatch.setattr(raw, "decode", lambda sample, spec: (seen.append(sample["__key__"]), slow(sample, spec))[1])
    return seen


def test_images_in_any_order(files: list[tuple[Path, int]], images: np.ndarray, read_one_by_one: list[object]) -> None:
    ids = np.random.default_rng(0).integers(0, 23, 100)
    pixels, damaged = raw_images(files).gather(ids // 5, ids % 5)
    assert np.array_equal(pixels, images[ids])
    assert not damaged
    assert not read_one_by_one


def test_sixteen_bits(prepare_images: Callable[..., Manifest], tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 2**16, (7, 4, 6, 3), dtype=np.uint16)
    manifest = prepare_images(images, max_value=2**16 - 1)
    files = [(tmp_path / "images" / shard.file, shard.samples) for shard in manifest.shards("train")]
    pixels, damaged = raw_images(files, manifest.spec).gather(np.array([0, 1, 0]), np.array([4, 1, 0]))
    assert pixels.dtype == np.uint16
    assert np.array_equal(pixels, images[[4, 6, 0]])
    assert not damaged


def test_tars_that_webdataset_wrote(tmp_path: Path, images: np.ndarray, read_one_by_one: list[object]) -> None:
    """Its own order of members, PAX-free headers, no hashes."""
    with webdataset.TarWriter(str(tmp_path / "w.tar")) as tar:
        for number, image in enumerate(images):
            tar.write({"__key__": f"{number}", "npy": image, "cls": number % 2})
    ids = np.array([22, 0, 7, 7])
    pixels, damaged = raw_images([(tmp_path / "w.tar", 23)]).gather(np.zeros_like(ids), ids)
    assert np.array_equal(pixels, images[ids])
    assert not damaged
    assert not read_one_by_one


def test_samples_of_unequal_room_are_read_one_by_one(
    tmp_path: Path, images: np.ndarray, read_one_by_one: list[object]
) -> None:
    path = tmp_path / "u.tar"
    with tarfile.open(path, "w") as tar:
        for number, image in enumerate(images):
            file = io.BytesIO()
            np.save(file, image)
            for extension, content in (("npy", file.getvalue()), ("txt", b"x" * (300 * (number % 5)))):
                member = tarfile.TarInfo(f"{number}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    ids = np.arange(23)
    pixels, damaged = raw_images([(path, 23)]).gather(np.zeros_like(ids), ids)
    assert np.array_equal(pixels, images)
    assert not damaged
    assert len(read_one_by_one) == 23


def gather_all(files: list[tuple[Path, int]], spec: DataSpec = SPEC) -> tuple[np.ndarray, dict[int, str]]:
    ids = np.arange(23)
    pixels, damaged = raw_images(files, spec).gather(ids // 5, ids % 5)
    return pixels, {row: str(error) for row, error in damaged.items()}


def test_damage_is_confined_and_named(files: list[tuple[Path, int]], images: np.ndarray) -> None:
    """A missing shard, a cut one, a flipped bit in a pixel, and one in a header."""
    files[0][0].unlink()
    size = files[1][0].read_bytes().index(b"000000007.npy") + 512 + 100  # in the third of five
    os.truncate(files[1][0], size)
    for (path, _), sample, place in ((files[2], b"000000011.npy", 512 + 128 + 5), (files[3], b"000000018.npy", 130)):
        content = bytearray(path.read_bytes())
        content[content.index(sample) + place] ^= 4
        path.write_bytes(content)
    pixels, damaged = gather_all(files)
    assert sorted(damaged) == [0, 1, 2, 3, 4, 7, 8, 9, 11, 18]
    sound = [row for row in range(23) if row not in damaged]
    assert np.array_equal(pixels[sound], images[sound])
    assert not pixels[sorted(damaged)].any()
    assert all("train-000000.tar is missing" in damaged[row] for row in range(5))
    assert all("train-000001.tar is cut off after 2 samples" in damaged[row] for row in (7, 8, 9))
    assert "train-000002.tar, sample 000000011: .npy is not what was written" in damaged[11]
    assert "train-000003.tar is damaged after 3 samples" in damaged[18]


def test_more_samples_than_the_manifest_says(files: list[tuple[Path, int]]) -> None:
    _, damaged = gather_all([files[0]] * 5)
    assert not damaged
    _, damaged = gather_all([(files[0][0], 4)] * 5)
    assert len(damaged) == 23
    assert "holds 5 samples, the manifest says 4" in damaged[0]


def test_images_that_are_not_the_spec(files: list[tuple[Path, int]], images: np.ndarray) -> None:
    _, damaged = gather_all(files, SPEC.model_copy(update={"width": 5}))
    assert len(damaged) == 23
    assert "found uint8 (4, 6, 3)" in damaged[0]
    _, damaged = gather_all(files, SPEC.model_copy(update={"num_bits": 7, "max_value": 127}))
    too_bright = [row for row in range(23) if images[row].max() > 127]
    assert sorted(damaged) == too_bright
    assert "at most 127" in damaged[too_bright[0]]
