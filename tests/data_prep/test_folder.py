"""Folders as people have them."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from attvae.data.manifest import Split
from attvae.data.resize import centre_square
from data_prep import folder
from data_prep.dataset import Dataset, Rejected
from data_prep.dataset import Image as Sample


def crop(number: int, height: int = 20, width: int = 24) -> np.ndarray:
    return load_sample_image("flower.jpg")[3 * number :, 5 * number :][:height, :width]


def write(src: Path, name: str, pixels: np.ndarray) -> None:
    (src / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(src / name)


def write_all(src: Path, *names: str) -> None:
    for number, name in enumerate(names):
        write(src, name, crop(number))


def prepare(src: Path, size: int | None = None, bits: int | None = None) -> Dataset:
    return folder.dataset(src, size, "raw", bits)


def read(dataset: Dataset, split: Split) -> list[Sample | Rejected]:
    images = pickle.loads(pickle.dumps(dataset.splits[split]))
    return list(images.read(range(len(images))))


def every(dataset: Dataset) -> dict[str, Sample | Rejected]:
    samples = [sample for split in dataset.splits for sample in read(dataset, split)]
    return {sample.file if isinstance(sample, Rejected) else sample.info["file"]: sample for sample in samples}


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "ppm", "webp", "PNG"])
def test_images_come_as_they_are(tmp_path: Path, suffix: str) -> None:
    src = tmp_path / "holiday"
    for number in range(12):
        (src / "deep/er").mkdir(parents=True, exist_ok=True)
        options = {"lossless": True} if suffix == "webp" else {}
        Image.fromarray(crop(number)).save(src / f"deep/er/{number:02d}.{suffix}", **options)
    dataset = prepare(src)
    assert (dataset.name, dataset.spec.shape, dataset.spec.num_bits) == ("holiday", (3, 20, 24), 8)
    assert {split: len(images) for split, images in dataset.splits.items()} == {"train": 10, "val": 1, "test": 1}
    found = every(dataset)
    for number, name in enumerate(sorted(found)):
        assert name == f"deep/er/{number:02d}.{suffix}"
        assert np.array_equal(found[name].content, crop(number))
        assert found[name].label is None  # one folder is no class


def test_jpeg_and_png_together(tmp_path: Path) -> None:
    write_all(tmp_path, *(f"{k:02d}.{'jpg' if k % 2 else 'png'}" for k in range(10)))
    found = every(prepare(tmp_path))
    for number, name in enumerate(sorted(found)):
        difference = np.abs(found[name].content.astype(int) - crop(number)).mean()
        assert difference < 12 if number % 2 else difference == 0


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ({"train": 20}, {"train": 16, "val": 2, "test": 2}),
        ({"train": 20, "test": 4}, {"train": 18, "val": 2, "test": 4}),
        ({"train": 20, "valid": 3}, {"train": 18, "val": 3, "test": 2}),
        ({"train": 20, "validation": 3, "test": 1}, {"train": 20, "val": 3, "test": 1}),
    ],
)
def test_splits_are_taken_or_cut(tmp_path: Path, folders: dict[str, int], expected: dict[str, int]) -> None:
    write_all(tmp_path, *(f"{name}/{k:02d}.png" for name, count in folders.items() for k in range(count)))
    dataset = prepare(tmp_path)
    assert {split: len(images) for split, images in dataset.splits.items()} == expected
    found = every(dataset)
    assert len(found) == sum(folders.values())
    for split in ("val", "test"):
        given = {"val": {"valid", "validation"}, "test": {"test"}}[split] & set(folders) or {"train"}
        assert {sample.info["file"].split("/")[0] for sample in read(dataset, split)} == given
    names = [sample.info["file"] for sample in read(dataset, "train")]
    assert names != sorted(names)  # classes, sorted by name, are mixed


def test_labels_are_the_first_folders_below_the_split(tmp_path: Path) -> None:
    write_all(
        tmp_path,
        *(f"train/{name}/{k}/x.png" for name in ("dog", "cat", "emu") for k in range(4)),
        "test/emu/1.png",
        "test/cat/1.png",
        "val/1.png",
    )
    dataset = prepare(tmp_path)
    classes = {"cat": "0", "dog": "1", "emu": "2"}
    for sample in read(dataset, "train") + read(dataset, "test"):
        assert sample.label == classes[sample.info["file"].split("/")[1]]
    assert [sample.label for sample in read(dataset, "val")] == [None]


def test_labels_without_split_folders(tmp_path: Path) -> None:
    write_all(tmp_path, *(f"{name}/{k}.png" for name in "ab" for k in range(5)))
    assert {name[0]: sample.label for name, sample in every(prepare(tmp_path)).items()} == {"a": "0", "b": "1"}
    write_all(tmp_path, "loose.png")
    assert {sample.label for sample in every(prepare(tmp_path)).values()} == {None}


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels(tmp_path: Path, channels: int) -> None:
    for number in range(10):
        rgba = np.dstack([crop(number), crop(number)[:, :, 0]])
        write(tmp_path, f"{number}.png", rgba[:, :, 0] if channels == 1 else rgba[:, :, :channels])
    dataset = prepare(tmp_path)
    assert dataset.spec.channels == channels
    assert np.array_equal(every(dataset)["3.png"].content[:, :, 0], crop(3)[:, :, 0])


def test_unequal_images_name_two_files(tmp_path: Path) -> None:
    write_all(tmp_path, *(f"{k}.png" for k in range(10)))
    write(tmp_path, "a.png", crop(0)[:, :, 0])
    with pytest.raises(ValueError, match=r"unequal channel counts in .*: 0\.png has 3, a\.png has 1"):
        prepare(tmp_path, size=8)
    write(tmp_path, "a.png", crop(0, 10, 12))
    with pytest.raises(ValueError, match=r"0\.png has 20×24 pixels, a\.png has 10×12: give --size"):
        prepare(tmp_path)
    dataset = prepare(tmp_path, size=8)
    assert (dataset.name, dataset.spec.shape) == (f"{tmp_path.name}8", (3, 8, 8))
    assert np.array_equal(every(dataset)["a.png"].content, crop(0, 10, 12))


def test_16_bits_are_asked_for(tmp_path: Path) -> None:
    deep = [crop(k)[:, :, 0].astype(np.uint16) * 257 - k for k in range(10)]
    for number, pixels in enumerate(deep):
        write(tmp_path, f"{number}.{'png' if number % 2 else 'tif'}", pixels)
    with pytest.raises(ValueError, match="the images have 16 bits: give --bits 16"):
        prepare(tmp_path)
    for bits in (16, 10, 8, 5):
        dataset = prepare(tmp_path, bits=bits)
        assert (dataset.spec.num_bits, dataset.spec.max_value) == (bits, 2**bits - 1)
        content = every(dataset)["3.png"].content
        assert content.dtype == (np.uint8 if bits <= 8 else np.uint16)
        assert np.array_equal(content[:, :, 0], deep[3] // 2 ** (16 - bits))
    with pytest.raises(ValueError, match="--bits 17: the images have 16"):
        prepare(tmp_path, bits=17)
    write(tmp_path, "a.png", crop(0)[:, :, 0])
    with pytest.raises(ValueError, match=r"0\.tif has 16 bits, a\.png has 8"):
        prepare(tmp_path, bits=8)


def test_fewer_bits_are_taken_after_scaling(tmp_path: Path) -> None:
    write_all(tmp_path, *(f"{k}.png" for k in range(10)))
    dataset = prepare(tmp_path, size=5, bits=3)
    assert (dataset.spec.num_bits, dataset.spec.max_value) == (3, 7)
    blocks = crop(4)[:, 2:22].reshape(5, 4, 5, 4, 3).astype(int).sum((1, 3))
    assert np.array_equal(every(dataset)["4.png"].content, (blocks + 8) // 16 // 32)
    assert np.array_equal(centre_square(crop(4), 5), (blocks + 8) // 16)
    with pytest.raises(ValueError, match="--bits 9: the images have 8"):
        prepare(tmp_path, bits=9)


def test_damage_is_rejected(tmp_path: Path) -> None:
    write_all(tmp_path, *(f"{k:02d}.png" for k in range(10)))
    (tmp_path / "00.png").write_bytes(b"no image")
    (tmp_path / "05.png").write_bytes((tmp_path / "05.png").read_bytes()[:-200])
    found = every(prepare(tmp_path))
    assert {name: sample.reason for name, sample in found.items() if isinstance(sample, Rejected)}.keys() == {
        "00.png",
        "05.png",
    }
    assert "no image file of a known kind" in found["00.png"].reason


def test_nothing_readable(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"none of the 10 images .* 0\.jpg: no image file of a known kind"):
        prepare(tmp_path)


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no folder"):
        prepare(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(ValueError, match=r"has no images \(.*\.png.*\): found notes\.txt"):
        prepare(tmp_path)
    write_all(tmp_path, *(f"train/{k}.png" for k in range(20)))
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError, match=r"test has no images .* found nothing"):
        prepare(tmp_path)


def test_odd_split_folders(tmp_path: Path) -> None:
    write_all(tmp_path, "val/1.png")
    with pytest.raises(ValueError, match="has a folder val, but no folder train"):
        prepare(tmp_path)
    write_all(tmp_path, "train/1.png", "valid/1.png")
    with pytest.raises(ValueError, match="folders val and valid, both for val"):
        prepare(tmp_path)


def test_identity_follows_the_files(tmp_path: Path) -> None:
    write_all(tmp_path, *(f"{k}.png" for k in range(10)))
    first = prepare(tmp_path).identity
    assert prepare(tmp_path).identity == first
    write_all(tmp_path, "new.png")
    assert prepare(tmp_path).identity != first
