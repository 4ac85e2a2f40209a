import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from data_prep import imagenet_png
from data_prep.dataset import Image as Sample
from data_prep.dataset import Rejected

TRAIN, VALID = 20, 5


def pixels(size: int, number: int) -> np.ndarray:
    return load_sample_image("china.jpg")[size * (number // 8) :, size * (number % 8) :][:size, :size]


def unpacked(src: Path, size: int) -> None:
    """As the tars come apart: numbered PNG files in a folder of the tar's name."""
    for split, numbers in (("train", range(TRAIN)), ("valid", range(TRAIN, TRAIN + VALID))):
        folder = src / f"{split}_{size}x{size}"
        folder.mkdir(parents=True)
        for number in numbers:
            Image.fromarray(pixels(size, number)).save(folder / f"{number + 1:07d}.png")


def packed(src: Path, size: int) -> None:
    unpacked(src / "work", size)
    for split in ("train", "valid"):
        name = f"{split}_{size}x{size}"
        with tarfile.open(src / f"{name}.tar", "w") as tar:
            tar.add(src / "work" / name, name)


def read(images: object) -> list[Sample | Rejected]:
    images = pickle.loads(pickle.dumps(images))
    return list(images.read(range(len(images))))


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("lay_out", [packed, unpacked])
def test_images(tmp_path: Path, size: int, lay_out: object) -> None:
    lay_out(tmp_path, size)
    dataset = imagenet_png.dataset(tmp_path, "raw")
    assert (dataset.name, dataset.version) == (f"imagenet{size}-png", "png-vandenoord")
    assert "not comparable" in dataset.source
    assert dataset.spec.shape == (3, size, size)
    found = {split: read(images) for split, images in dataset.splits.items()}
    assert {split: len(samples) for split, samples in found.items()} == {"train": 18, "val": 2, "test": 5}
    both = sorted(found["train"] + found["val"], key=lambda sample: sample.info["file"])
    for number, sample in enumerate(both + found["test"]):
        assert np.array_equal(sample.content, pixels(size, number))
        assert sample.label is None
        assert sample.info["file"].endswith(f"{number + 1:07d}.png")


def test_both_layouts_give_the_same(tmp_path: Path) -> None:
    packed(tmp_path, 32)
    one, other = (imagenet_png.dataset(src, "raw").splits for src in (tmp_path, tmp_path / "work"))
    for split in one:
        for left, right in zip(read(one[split]), read(other[split]), strict=True):
            assert np.array_equal(left.content, right.content)
            assert left.info == right.info


def test_damage_and_other_sizes_are_rejected(tmp_path: Path) -> None:
    unpacked(tmp_path, 32)
    folder = tmp_path / "valid_32x32"
    first, second = sorted(folder.iterdir())[:2]
    first.write_bytes(first.read_bytes()[:200])
    Image.fromarray(pixels(64, 0)).save(second)
    samples = read(imagenet_png.dataset(tmp_path, "raw").splits["test"])
    assert [isinstance(sample, Rejected) for sample in samples] == [True, True, False, False, False]
    assert samples[0].file == "valid_32x32/0000021.png"
    assert "64×64, expected uint8 of 32×32" in samples[1].reason


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train_32x32\.tar and valid_32x32\.tar or .*found nothing"):
        imagenet_png.dataset(tmp_path, "raw")
    packed(tmp_path, 32)
    (tmp_path / "valid_32x32.tar").unlink()
    with pytest.raises(ValueError, match=r"neither valid_32x32\.tar nor a folder"):
        imagenet_png.dataset(tmp_path, "raw")
    packed(tmp_path, 64)
    with pytest.raises(ValueError, match="images of one size"):
        imagenet_png.dataset(tmp_path, "raw")


def test_truncated_tar(tmp_path: Path) -> None:
    packed(tmp_path, 32)
    tar = tmp_path / "train_32x32.tar"
    tar.write_bytes(tar.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"train_32x32\.tar is (no|cut short)"):
        imagenet_png.dataset(tmp_path, "raw")


def test_folder_without_images(tmp_path: Path) -> None:
    unpacked(tmp_path, 32)
    for path in (tmp_path / "valid_32x32").iterdir():
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(ValueError, match=r"holds no PNG files: found 0000021\.txt"):
        imagenet_png.dataset(tmp_path, "raw")


def test_stored_pixels_are_decoded_anew(tmp_path: Path) -> None:
    """A palette PNG gives its colours, whatever way its bytes are stored."""
    unpacked(tmp_path, 32)
    path = tmp_path / "valid_32x32/0000021.png"
    reduced = Image.fromarray(pixels(32, 20)).quantize(16)
    file = io.BytesIO()
    reduced.save(file, "PNG")
    path.write_bytes(file.getvalue())
    first = read(imagenet_png.dataset(tmp_path, "png").splits["test"])[0]
    assert np.array_equal(first.content, np.asarray(reduced.convert("RGB")))
