import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from crops import crops

from data_prep import mnist
from data_prep.splits import fixed_order

TRAIN, TEST = 40, 8
IMAGES = crops(TRAIN + TEST, 28)[..., 1]
LABELS = [3 * number % 10 for number in range(TRAIN + TEST)]


def idx(magic: int, lengths: list[int], content: bytes) -> bytes:
    """The format as LeCun's page describes it."""
    return struct.pack(f">i{len(lengths)}i", magic, *lengths) + content


def files() -> dict[str, bytes]:
    found = {}
    for part, numbers in (("train", slice(0, TRAIN)), ("t10k", slice(TRAIN, None))):
        images, labels = IMAGES[numbers], LABELS[numbers]
        found[f"{part}-images-idx3-ubyte"] = idx(2051, [len(images), 28, 28], images.tobytes())
        found[f"{part}-labels-idx1-ubyte"] = idx(2049, [len(labels)], bytes(labels))
    return found


def folder(tmp_path: Path, **changed: bytes) -> Path:
    """The files, of which some are changed: underscores in their names stand for hyphens."""
    for name, content in (files() | {name.replace("_", "-"): content for name, content in changed.items()}).items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def gzipped(tmp_path: Path) -> Path:
    for name, content in files().items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    return tmp_path


def dotted(tmp_path: Path) -> Path:
    for name, content in files().items():
        (tmp_path / name.replace("-idx", ".idx")).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("make", [folder, gzipped, dotted])
def test_images(make: object, tmp_path: Path) -> None:
    dataset = mnist.dataset(make(tmp_path), None, "raw")
    order = fixed_order(TRAIN)
    for split, numbers in {"train": order[:36], "val": order[36:], "test": range(TRAIN, TRAIN + TEST)}.items():
        images = pickle.loads(pickle.dumps(dataset.splits[split]))
        for image, number in zip(images.read(range(len(images))), numbers, strict=True):
            assert np.array_equal(image.content, IMAGES[number][:, :, None])
            assert image.content.dtype == np.uint8
            assert image.label == str(LABELS[number])
    assert dataset.name == "mnist"
    assert dataset.spec.model_dump() == {
        "height": 28,
        "width": 28,
        "channels": 1,
        "num_bits": 8,
        "max_value": 255,
        "binary": True,
    }


def test_another_size_has_another_name(tmp_path: Path) -> None:
    dataset = mnist.dataset(folder(tmp_path), 14, "png")
    assert (dataset.name, dataset.spec.shape, dataset.format) == ("mnist-14", (1, 14, 14), "png")


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "mnist.npz").touch()
    with pytest.raises(
        ValueError, match=r"lacks train-images, train-labels, t10k-images, t10k-labels: .*found mnist\.npz$"
    ):
        mnist.dataset(tmp_path, None, "raw")


def test_a_file_is_missing(tmp_path: Path) -> None:
    src = folder(tmp_path)
    (src / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(ValueError, match=r"lacks t10k-labels: expected"):
        mnist.dataset(src, None, "raw")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            idx(2051, [50_000, 28, 28], IMAGES[:TRAIN].tobytes()),
            r"claims 50000 samples, 39200000 bytes, but has 31360",
        ),
        (idx(2051, [2**31 - 1] * 3, b"\0"), r"claims 2147483647 samples, \d{28} bytes, but has 1:"),
        (idx(2051, [TRAIN - 1, 28, 28], IMAGES[:TRAIN].tobytes()), r"claims 39 samples, 30576 bytes, but has 31360"),
        (
            idx(2049, [TRAIN], bytes(TRAIN)),
            r"no idx file of 3 dimensions: it has 48 bytes and begins with 0x00000801",
        ),
        (b"<html>404</html>" * 9, r"no idx file of 3 dimensions: it has 144 bytes and begins with 0x3c68746d"),
        (b"", r"no idx file of 3 dimensions: it has 0 bytes"),
        (idx(2051, [TRAIN], b"\0"), r"no idx file of 3 dimensions: it has 9 bytes"),
        (idx(2051, [TRAIN, 32, 32], bytes(TRAIN * 1024)), r"images of 32×32 pixels, expected 28×28"),
    ],
)
def test_bad_images(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        mnist.dataset(folder(tmp_path, train_images_idx3_ubyte=content), None, "raw")


def test_labels_of_another_count(tmp_path: Path) -> None:
    src = folder(tmp_path, t10k_labels_idx1_ubyte=idx(2049, [TEST + 1], bytes(TEST + 1)))
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte has 9 labels for the 8 images"):
        mnist.dataset(src, None, "raw")


def test_a_gzipped_file_is_cut_short_or_damaged(tmp_path: Path) -> None:
    path = gzipped(tmp_path) / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:500] + b"\xff" * 500 + whole[1000:], b"no gzip at all", whole[:5]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz is damaged or cut short"):
            mnist.dataset(tmp_path, None, "raw")
