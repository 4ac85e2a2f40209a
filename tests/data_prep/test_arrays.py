import io
import os
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from crops import crops

from attvae.data.manifest import Manifest
from data_prep import arrays
from data_prep.dataset import Dataset
from data_prep.splits import fixed_order
from data_prep.writer import prepare_unpacked

COLOUR = crops(60, 16)
GREY = COLOUR[..., 0]
DEEP = COLOUR.astype(np.uint16) * 257


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return tmp_path / "out" / ".work"


def contents(dataset: Dataset, split: str) -> np.ndarray:
    images = pickle.loads(pickle.dumps(dataset.splits[split]))
    return np.stack([image.content for image in images.read(range(len(images)))])


@pytest.mark.parametrize(
    ("array", "pixels", "num_bits", "binary"),
    [
        (COLOUR, COLOUR, 8, False),
        (COLOUR.transpose(0, 3, 1, 2), COLOUR, 8, False),
        (np.asfortranarray(COLOUR), COLOUR, 8, False),
        (GREY, GREY[..., None], 8, False),
        (GREY[:, None], GREY[..., None], 8, False),
        (np.concatenate([COLOUR, COLOUR[..., :1]], 3), np.concatenate([COLOUR, COLOUR[..., :1]], 3), 8, False),
        (DEEP, DEEP, 16, False),
        (DEEP[..., 0].astype(">u2"), DEEP[..., :1], 16, False),
        (GREY > 128, (GREY > 128).astype(np.uint8)[..., None], 1, True),
        (COLOUR[:, :10], COLOUR[:, :10], 8, False),
    ],
    ids=["NHWC", "NCHW", "Fortran", "NHW", "N1HW", "four channels", "16 bits", "big-endian", "bool", "not square"],
)
def test_one_file(
    array: np.ndarray, pixels: np.ndarray, num_bits: int, binary: bool, tmp_path: Path, work: Path
) -> None:
    np.save(tmp_path / "images.npy", array)
    dataset = arrays.dataset(tmp_path / "images.npy", None, "raw", work)
    order = fixed_order(60)
    for split, numbers in {"train": order[:48], "test": order[48:54], "val": order[54:]}.items():
        found = contents(dataset, split)
        assert np.array_equal(found, pixels[numbers])
        assert found.dtype == pixels.dtype
    assert dataset.spec.model_dump() == {
        "height": pixels.shape[1],
        "width": pixels.shape[2],
        "channels": pixels.shape[3],
        "num_bits": num_bits,
        "max_value": 2**num_bits - 1,
        "binary": binary,
    }
    assert dataset.name == "images"
    assert not work.exists()


NAMED = {"train": COLOUR[:40], "val": COLOUR[40:48], "test": COLOUR[48:]}
LABELS = {"train_labels": np.arange(40) % 3, "val_labels": np.arange(8)[:, None], "mean": COLOUR.mean(0)}


def folder(src: Path, content: dict[str, np.ndarray]) -> Path:
    src.mkdir()
    for name, array in content.items():
        np.save(src / name, array)
    return src


def npz(src: Path, content: dict[str, np.ndarray]) -> Path:
    np.savez(src.with_suffix(".npz"), **content)
    return src.with_suffix(".npz")


def npz_compressed(src: Path, content: dict[str, np.ndarray]) -> Path:
    np.savez_compressed(src.with_suffix(".npz"), **content)
    return src.with_suffix(".npz")


@pytest.mark.parametrize("make", [folder, npz, npz_compressed])
def test_named_splits(make: object, tmp_path: Path, work: Path) -> None:
    dataset = arrays.dataset(make(tmp_path / "named", NAMED | LABELS), None, "raw", work)
    order = fixed_order(40)
    for split, pixels in {**NAMED, "train": NAMED["train"][order]}.items():
        assert np.array_equal(contents(dataset, split), pixels)
    assert [image.label for image in dataset.splits["train"].read(range(40))] == [str(n % 3) for n in order]
    assert [image.label for image in dataset.splits["val"].read(range(8))] == list("01234567")
    assert [image.label for image in dataset.splits["test"].read(range(1))] == [None]


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_missing_splits_are_cut_from_train(val: str, tmp_path: Path, work: Path) -> None:
    train = COLOUR[:40]
    order = fixed_order(40)
    only = arrays.dataset(npz(tmp_path / "only", {"train": train}), None, "raw", work)
    assert np.array_equal(contents(only, "train"), train[order[:32]])
    assert np.array_equal(contents(only, "val"), train[order[36:]])
    assert np.array_equal(contents(only, "test"), train[order[32:36]])
    tested = arrays.dataset(npz(tmp_path / "tested", {"train": train, "test": COLOUR[40:]}), None, "raw", work)
    assert np.array_equal(contents(tested, "train"), train[order[:36]])
    assert np.array_equal(contents(tested, "val"), train[order[36:]])
    assert np.array_equal(contents(tested, "test"), COLOUR[40:])
    given = {"train": train, val: COLOUR[40:], f"{val}_labels": np.arange(20)}
    validated = arrays.dataset(npz(tmp_path / "validated", given), None, "raw", work)
    assert np.array_equal(contents(validated, "train"), train[order[:36]])
    assert np.array_equal(contents(validated, "test"), train[order[36:]])
    assert np.array_equal(contents(validated, "val"), COLOUR[40:])
    assert [image.label for image in validated.splits["val"].read(range(2))] == ["0", "1"]


def test_images_travel_without_their_pixels(tmp_path: Path, work: Path) -> None:
    large = np.zeros((3000, 32, 32, 3), np.uint8)
    np.save(tmp_path / "large.npy", large)
    dataset = arrays.dataset(tmp_path / "large.npy", None, "raw", work)
    assert len(pickle.dumps(dataset)) < 3000 * 8 + 5000  # the numbers of a split, and no pixel


def test_size_is_of_the_square_that_is_scaled_to(tmp_path: Path, work: Path) -> None:
    src = folder(tmp_path / "photos", {"train": COLOUR, "test": crops(12, 32)})
    with pytest.raises(ValueError, match=r"train has uint8 of 16×16 with channels: 3, test has uint8 of 32×32"):
        arrays.dataset(src, None, "raw", work)
    dataset = arrays.dataset(src, 8, "png", work)
    assert (dataset.name, dataset.spec.shape, dataset.format) == ("photos8", (3, 8, 8), "png")


def test_binary_images_are_not_scaled(tmp_path: Path, work: Path) -> None:
    np.save(tmp_path / "binary.npy", GREY > 99)
    with pytest.raises(ValueError, match="are binary and cannot be scaled: leave --size out"):
        arrays.dataset(tmp_path / "binary.npy", 8, "raw", work)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((20, 3, 8, 3), np.uint8), r"shape \[20, 3, 8, 3\], expected \[N, H, W\].* only one of the two"),
        (np.zeros((20, 8, 8, 2), np.uint8), r"shape \[20, 8, 8, 2\], expected \[N, H, W\]"),
        (np.zeros((20, 64), np.uint8), r"shape \[20, 64\], expected"),
        (np.zeros((20, 8, 8, 3, 1), np.uint8), r"shape \[20, 8, 8, 3, 1\], expected"),
        (np.zeros((20, 8, 8)), r"values of type float64, expected uint8, uint16, or bool"),
        (np.zeros((20, 8, 8), np.int8), r"values of type int8"),
        (np.zeros((20, 8, 8), np.uint32), r"values of type uint32"),
        (np.zeros((0, 8, 8), np.uint8), r"has no images: its shape is \[0, 8, 8\]"),
        (np.zeros((9, 8, 8), np.uint8), r"9 images are too few"),
    ],
)
def test_unsuitable_arrays(array: np.ndarray, message: str, tmp_path: Path, work: Path) -> None:
    np.save(tmp_path / "images.npy", array)
    with pytest.raises(ValueError, match=message):
        arrays.dataset(tmp_path / "images.npy", None, "raw", work)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("make", [folder, npz])
def test_objects_are_never_unpickled(make: object, tmp_path: Path, work: Path) -> None:
    objects = np.array([[[Touch(tmp_path / "ran")]]], object)
    with pytest.raises(ValueError, match="Python objects"):
        arrays.dataset(make(tmp_path / "objects", {"train": objects}), None, "raw", work)
    with pytest.raises(ValueError, match="Python objects"):
        arrays.dataset(make(tmp_path / "labels", {"train": COLOUR, "train_labels": objects}), None, "raw", work)
    (tmp_path / "pickled.npy").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    with pytest.raises(ValueError, match=r"pickled\.npy cannot be read"):
        arrays.dataset(tmp_path / "pickled.npy", None, "raw", work)
    assert not (tmp_path / "ran").exists()


def test_a_file_that_claims_more_samples_than_it_has(tmp_path: Path, work: Path) -> None:
    file = io.BytesIO()
    np.save(file, COLOUR)
    claims = file.getvalue().replace(b"(60, 16", b"(90, 16")
    (tmp_path / "images.npy").write_bytes(claims)
    with pytest.raises(ValueError, match=r"images\.npy cannot be read .*all of it"):
        arrays.dataset(tmp_path / "images.npy", None, "raw", work)
    with zipfile.ZipFile(tmp_path / "images.npz", "w") as archive:
        archive.writestr("train.npy", claims)
    with pytest.raises(ValueError, match=r"images\.npz: train cannot be read .*all of it"):
        arrays.dataset(tmp_path / "images.npz", None, "raw", work)


@pytest.mark.parametrize("make", [npz, npz_compressed])
def test_a_damaged_archive(make: object, tmp_path: Path, work: Path) -> None:
    src = make(tmp_path / "images", {"train": COLOUR})
    whole = src.read_bytes()
    src.write_bytes(whole[:-50])
    with pytest.raises(ValueError, match=r"images\.npz is no \.npz file, or cut short"):
        arrays.dataset(src, None, "raw", work)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    src.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"train in .*images\.npz is damaged or cut short"):
        arrays.dataset(src, None, "raw", work)
    assert not list(work.rglob("*.npy*"))


def test_what_is_missing_or_there_twice(tmp_path: Path, work: Path) -> None:
    with pytest.raises(ValueError, match=r"has no array named train .*: found images, labels"):
        arrays.dataset(npz(tmp_path / "a", {"images": COLOUR, "labels": np.arange(60)}), None, "raw", work)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no array named train .*: found nothing"):
        arrays.dataset(tmp_path / "empty", None, "raw", work)
    with pytest.raises(ValueError, match="has the arrays val and valid, both for val: keep one"):
        arrays.dataset(npz(tmp_path / "b", {"train": COLOUR, "val": COLOUR, "valid": COLOUR}), None, "raw", work)
    for name in ("absent.npy", "c.txt"):
        (tmp_path / "c.txt").touch()
        with pytest.raises(ValueError, match=r"should be a \.npy file, a \.npz file, or a folder"):
            arrays.dataset(tmp_path / name, None, "raw", work)


@pytest.mark.parametrize("labels", [np.arange(59), np.arange(60) / 2, np.zeros((60, 10), int), np.array(["cat"] * 60)])
def test_labels_that_do_not_fit(labels: np.ndarray, tmp_path: Path, work: Path) -> None:
    src = npz(tmp_path / "images", {"train": COLOUR, "train_labels": labels})
    with pytest.raises(ValueError, match=r"images\.npz: train_labels is .* for each of the 60 images"):
        arrays.dataset(src, None, "raw", work)


def test_what_is_unpacked_is_used_again_until_the_source_changes(tmp_path: Path, work: Path) -> None:
    src = npz(tmp_path / "images", {"train": COLOUR})
    arrays.dataset(src, None, "raw", work)
    [unpacked] = work.rglob("*.npy")
    before = unpacked.stat()
    arrays.dataset(src, None, "raw", work)
    assert unpacked.stat().st_mtime_ns == before.st_mtime_ns
    unpacked.write_bytes(b"cut short")
    dataset = arrays.dataset(src, None, "raw", work)
    assert unpacked.stat().st_size == before.st_size
    np.savez(src, train=COLOUR[::-1])
    os.utime(src, ns=(1, 1))
    changed = arrays.dataset(src, None, "raw", work)
    assert changed.identity != dataset.identity
    assert np.array_equal(contents(changed, "train"), COLOUR[::-1][fixed_order(60)[:48]])


def test_unpacking_and_reading_take_little_memory(tmp_path: Path, work: Path) -> None:
    src = npz(tmp_path / "large", {"train": np.zeros((20_000, 32, 32, 3), np.uint8)})
    tracemalloc.start()
    try:
        dataset = arrays.dataset(src, None, "raw", work)
        assert sum(1 for _ in dataset.splits["train"].read(range(10_000))) == 10_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8e6  # of 61 MB


def test_shards_by_two_processes(tmp_path: Path) -> None:
    src = npz_compressed(tmp_path / "images", NAMED | LABELS)
    out = tmp_path / "out"
    prepare_unpacked(lambda work: arrays.dataset(src, None, "png", work), out, workers=2)
    manifest = Manifest.read(out)
    for split, pixels in {**NAMED, "train": NAMED["train"][fixed_order(40)]}.items():
        urls = [str(out / shard.file) for shard in manifest.shards(split)]
        samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
        assert np.array_equal([sample["png"] for sample in samples], pixels)
    assert not (out / ".work").exists()
