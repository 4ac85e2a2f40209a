import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import python2_pickle
import webdataset
from crops import crops

from data_prep import imagenet_npz
from data_prep.splits import fixed_order
from data_prep.writer import prepare_unpacked

BATCHES = [f"train_data_batch_{number}" for number in range(1, 11)] + ["val_data"]
# Batches need not be equally large.
EACH = dict(zip(BATCHES, [4, 3, 5, 4, 4, 4, 4, 4, 4, 2, 6], strict=True))
TRAIN, TEST = 38, 6


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "out" / ".work"


def labels(numbers: range) -> list[int]:
    return [1 + 333 * number % 1000 for number in numbers]


def contents(size: int) -> dict[str, dict[str, object]]:
    """The batches as image-net.org has them: a row an image, red, green, blue."""
    pixels = crops(TRAIN + TEST, size)
    found: dict[str, dict[str, object]] = {}
    start = 0
    for batch, images in EACH.items():
        numbers = range(start, start + images)
        data = pixels[numbers.start : numbers.stop].transpose(0, 3, 1, 2).reshape(images, -1)
        found[batch] = {"data": data, "labels": labels(numbers), "mean": data.mean(0)}
        start += images
    return found


def save(src: Path, kind: str, size: int = 16) -> Path:
    src.mkdir(exist_ok=True)
    for batch, content in contents(size).items():
        match kind:
            case "npz":
                np.savez(src / batch, **content)
            case "python 2":
                (src / batch).write_bytes(python2_pickle.dumps(content))
            case "python 3":
                (src / batch).write_bytes(pickle.dumps(content))
    return src


@pytest.mark.parametrize(("kind", "size"), [("npz", 8), ("npz", 32), ("npz", 64), ("python 2", 16), ("python 3", 32)])
def test_images(kind: str, size: int, tmp_path: Path, work: Path) -> None:
    dataset = imagenet_npz.dataset(save(tmp_path / "src", kind, size), "png", work)
    assert (dataset.name, dataset.version, dataset.format) == (f"imagenet{size}-npz", "npz", "png")
    assert "not comparable" in dataset.source
    assert dataset.spec.model_dump() == {
        "height": size,
        "width": size,
        "channels": 3,
        "num_bits": 8,
        "max_value": 255,
        "binary": False,
    }
    pixels, classes = crops(TRAIN + TEST, size), labels(range(TRAIN + TEST))
    order = fixed_order(TRAIN)
    for split, numbers in {"train": order[:35], "val": order[35:], "test": range(TRAIN, TRAIN + TEST)}.items():
        images = pickle.loads(pickle.dumps(dataset.splits[split]))
        assert len(images) == len(numbers)
        for image, number in zip(images.read(range(len(images))), numbers, strict=True):
            assert np.array_equal(image.content, pixels[number])
            assert image.label == str(classes[number] - 1)


def test_shards_are_plain_webdataset(tmp_path: Path) -> None:
    src, out = save(tmp_path / "src", "npz"), tmp_path / "out"
    prepare_unpacked(lambda work: imagenet_npz.dataset(src, "raw", work), out)
    samples = list(webdataset.WebDataset(str(out / "test-000000.tar"), shardshuffle=False).decode())
    assert np.array_equal([sample["npy"] for sample in samples], crops(TRAIN + TEST, 16)[TRAIN:])
    assert [sample["cls"] + 1 for sample in samples] == labels(range(TRAIN, TRAIN + TEST))


def test_nothing_there(tmp_path: Path, work: Path) -> None:
    (tmp_path / "Imagenet64_train_part1.zip").touch()
    with pytest.raises(
        ValueError, match=r"has no images of downsampled ImageNet: .*found Imagenet64_train_part1\.zip$"
    ):
        imagenet_npz.dataset(tmp_path, "raw", work)


def test_missing_batches_are_named(tmp_path: Path, work: Path) -> None:
    src = save(tmp_path / "src", "npz")
    for batch in ("train_data_batch_3", "train_data_batch_10", "val_data"):
        (src / f"{batch}.npz").unlink()
    with pytest.raises(ValueError, match=r"src lacks train_data_batch_3, train_data_batch_10, val_data: expected"):
        imagenet_npz.dataset(src, "raw", work)


def test_batches_of_two_sizes(tmp_path: Path, work: Path) -> None:
    src = save(tmp_path / "src", "npz")
    np.savez(src / "train_data_batch_7", **contents(32)["train_data_batch_7"])
    with pytest.raises(ValueError, match=r"images of 32 pixels in train_data_batch_7, of 16 in val_data"):
        imagenet_npz.dataset(src, "raw", work)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"data": np.zeros((4, 16, 16, 3), np.uint8)},
            r"array data uint8 \[4, 16, 16, 3\], expected uint8 \[images, 3·S·S\]",
        ),
        ({"data": np.zeros((4, 3 * 24 * 24), np.uint8)}, r"array data uint8 \[4, 1728\], expected .* 8, 16, 32, 64"),
        ({"data": np.zeros((4, 768))}, r"array data float64 \[4, 768\]"),
        ({"data": np.zeros((0, 768), np.uint8), "labels": []}, r"array data uint8 \[0, 768\]"),
        ({"labels": [1, 2, 3]}, r"labels int64 \[3\] for 4 images"),
        ({"labels": [1, 2, 3, 0]}, r"labels 0\.\.3, expected 1\.\.1000"),
        ({"labels": [1, 2, 3, 1001]}, r"labels 1\.\.1001, expected 1\.\.1000"),
    ],
)
@pytest.mark.parametrize("kind", ["npz", "python 2"])
def test_bad_batches(kind: str, changed: dict[str, object], message: str, tmp_path: Path, work: Path) -> None:
    src = save(tmp_path / "src", kind)
    content = contents(16)["train_data_batch_5"] | changed
    if kind == "npz":
        np.savez(src / "train_data_batch_5", **content)
    else:
        (src / "train_data_batch_5").write_bytes(python2_pickle.dumps(content))
    with pytest.raises(ValueError, match=rf"train_data_batch_5.*{message}"):
        imagenet_npz.dataset(src, "raw", work)


def test_a_batch_without_labels(tmp_path: Path, work: Path) -> None:
    src = save(tmp_path / "src", "npz")
    np.savez(src / "train_data_batch_2", data=np.zeros((4, 768), np.uint8))
    with pytest.raises(ValueError, match=r"train_data_batch_2\.npz has no array 'labels': found data"):
        imagenet_npz.dataset(src, "raw", work)
    src = save(tmp_path / "pickled", "python 2")
    (src / "train_data_batch_2").write_bytes(python2_pickle.dumps({"data": np.zeros((4, 768), np.uint8)}))
    with pytest.raises(ValueError, match=r"train_data_batch_2 has no data and labels: found data"):
        imagenet_npz.dataset(src, "raw", work)


def test_a_pickle_that_calls_something(tmp_path: Path, work: Path) -> None:
    src = save(tmp_path / "src", "python 2")
    (src / "val_data").write_bytes(b"\x80\x02cposix\nsystem\nU\x09touch ranx\x85R.")
    with pytest.raises(ValueError, match=r"val_data is no pickle .* it names posix\.system, which is refused"):
        imagenet_npz.dataset(src, "raw", work)


@pytest.mark.parametrize("kind", ["npz", "python 3"])
def test_an_interrupted_preparation_unpacks_the_rest(kind: str, tmp_path: Path, work: Path) -> None:
    src = save(tmp_path / "src", kind)
    suffix = ".npz" if kind == "npz" else ""
    val = src / f"val_data{suffix}"
    whole, time = val.read_bytes(), val.stat().st_mtime_ns
    val.write_bytes(b"x" * len(whole))
    os.utime(val, ns=(time, time))
    with pytest.raises(ValueError, match="val_data"):
        imagenet_npz.dataset(src, "raw", work)
    unpacked = {path: path.stat().st_mtime_ns for path in work.rglob("*.npy")}
    assert len(unpacked) == 20
    val.write_bytes(whole)
    os.utime(val, ns=(time, time))
    dataset = imagenet_npz.dataset(src, "raw", work)
    assert {path: path.stat().st_mtime_ns for path in unpacked} == unpacked
    assert len(dataset.splits["test"]) == TEST
    assert not list(work.rglob("*.tmp"))
