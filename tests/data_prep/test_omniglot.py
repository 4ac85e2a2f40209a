import pickle
from pathlib import Path

import numpy as np
import pytest
from crops import crops
from scipy.io import savemat

from data_prep import omniglot
from data_prep.splits import fixed_order

TRAIN, TEST = 40, 8
GREY = crops(TRAIN + TEST, 28)[..., 1] / 255.0


def one_hot(classes: np.ndarray) -> np.ndarray:
    return np.eye(50, dtype=np.uint8)[:, classes]


def content() -> dict[str, np.ndarray]:
    """As in chardata.mat: a column an image, its rows one after the other."""
    columns = GREY.reshape(-1, 784).T
    alphabets = np.arange(TRAIN + TEST) % 50
    characters = np.arange(TRAIN + TEST)[None] % 20
    return {
        "data": columns[:, :TRAIN],
        "target": one_hot(alphabets[:TRAIN]),
        "targetchar": characters[:, :TRAIN],
        "testdata": columns[:, TRAIN:],
        "testtarget": one_hot(alphabets[TRAIN:]),
        "testtargetchar": characters[:, TRAIN:],
    }


def save(tmp_path: Path, **changed: np.ndarray) -> Path:
    savemat(tmp_path / "chardata.mat", content() | changed)
    return tmp_path


@pytest.mark.parametrize("named", ["folder", "file"])
def test_images(named: str, tmp_path: Path) -> None:
    src = save(tmp_path)
    dataset = omniglot.dataset(src if named == "folder" else src / "chardata.mat", "raw")
    order = fixed_order(TRAIN)
    for split, numbers in {"train": order[:36], "val": order[36:], "test": range(TRAIN, TRAIN + TEST)}.items():
        images = pickle.loads(pickle.dumps(dataset.splits[split]))
        for image, number in zip(images.read(range(len(images))), numbers, strict=True):
            assert np.array_equal(image.content[:, :, 0], crops(TRAIN + TEST, 28)[number, :, :, 1])
            assert image.content.shape == (28, 28, 1)
            assert image.label == str(number)
    assert (dataset.name, dataset.format) == ("omniglot", "raw")
    assert dataset.spec.model_dump() == {
        "height": 28,
        "width": 28,
        "channels": 1,
        "num_bits": 8,
        "max_value": 255,
        "binary": True,
    }


def test_the_split_of_the_authors(tmp_path: Path) -> None:
    """The published numbers of images; each holds its own number, a bit a pixel."""
    numbers = np.arange(24_345)
    bits = np.zeros((784, len(numbers)), np.uint8)
    bits[:15] = numbers >> np.arange(15)[:, None] & 1
    data = {"data": bits, "target": one_hot(numbers % 50)}
    savemat(tmp_path / "chardata.mat", content() | data, do_compression=True)
    dataset = omniglot.dataset(tmp_path, "raw")

    def read(split: str) -> list[int]:
        images = dataset.splits[split].read(range(len(dataset.splits[split])))
        return [int((image.content[0, :15, 0] // 255) @ (1 << np.arange(15))) for image in images]

    assert read("val") == list(range(23_000, 24_345))
    train = read("train")
    assert sorted(train) == list(range(23_000))
    assert train != sorted(train)


def test_grey_levels_are_rounded(tmp_path: Path) -> None:
    values = np.array([0, 0.001, 0.00197, 0.4, 0.5019, 0.9979, 0.9981, 1])
    testdata = np.zeros((784, TEST))
    testdata[: len(values)] = values[:, None]
    dataset = omniglot.dataset(save(tmp_path, testdata=testdata), "raw")
    [image] = dataset.splits["test"].read(range(1))
    assert image.content.reshape(784)[: len(values)].tolist() == [0, 0, 1, 102, 128, 254, 255, 255]


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "omniglot.zip").touch()
    with pytest.raises(ValueError, match=r"no images of Omniglot: expected chardata\.mat, found omniglot\.zip$"):
        omniglot.dataset(tmp_path, "raw")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": np.zeros((1024, TRAIN))}, r"no matrix 'data' \[784, images\]: found .*data \[1024, 40\] double"),
        ({"data": np.zeros((784, TRAIN), object)}, r"has values outside 0\.\.1 in 'data'"),
        ({"testdata": np.full((784, TEST), 255.0)}, r"has values outside 0\.\.1 in 'testdata'"),
        ({"testdata": np.full((784, TEST), np.nan)}, r"has values outside 0\.\.1 in 'testdata'"),
        ({"target": one_hot(np.arange(TRAIN - 1))}, r"no matrix 'target' \[alphabets, 40\]"),
        ({"target": np.zeros((50, TRAIN))}, r"columns in 'target' that are not a single one"),
    ],
)
def test_bad_content(changed: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        omniglot.dataset(save(tmp_path, **changed), "raw")


def test_damaged_files(tmp_path: Path) -> None:
    path = save(tmp_path) / "chardata.mat"
    whole = path.read_bytes()
    for damaged in (
        whole[: len(whole) // 2],
        whole[:130],
        b"<html>404</html>" * 100,
        b"",
        b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM",
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is no MATLAB file of version 5, damaged or cut short"):
            omniglot.dataset(tmp_path, "raw")
