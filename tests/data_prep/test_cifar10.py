import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import python2_pickle
import webdataset
from crops import crops

from data_prep import cifar10
from data_prep.splits import fixed_order
from data_prep.writer import prepare

EACH = 6  # images of a batch
NAMES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
IMAGES = crops(EACH * len(NAMES), 32)
LABELS = [7 * number % 10 for number in range(len(IMAGES))]
FOLDERS = {"binary": "cifar-10-batches-bin", "python 2": "cifar-10-batches-py", "python 3": "cifar-10-batches-py"}


def files(version: str) -> dict[str, bytes]:
    """The files of a version, as the web page of CIFAR-10 describes them."""
    found = {"batches.meta.txt": b"airplane\n"} if version == "binary" else {"batches.meta": b"", "readme.html": b""}
    for batch, name in enumerate(NAMES):
        numbers = range(batch * EACH, (batch + 1) * EACH)
        rows = [IMAGES[number].transpose(2, 0, 1).reshape(3072) for number in numbers]
        labels = [LABELS[number] for number in numbers]
        held = {
            "batch_label": name,
            "labels": labels,
            "data": np.stack(rows),
            "filenames": [f"{n}.png" for n in numbers],
        }
        match version:
            case "binary":
                found[f"{name}.bin"] = b"".join(
                    bytes([label]) + row.tobytes() for label, row in zip(labels, rows, strict=True)
                )
            case "python 2":
                found[name] = python2_pickle.dumps(held)
            case "python 3":
                found[name] = pickle.dumps(held, 2)
    return found


def folder(tmp_path: Path, version: str, **changed: bytes) -> Path:
    src = tmp_path / FOLDERS[version]
    src.mkdir()
    for name, content in (files(version) | changed).items():
        (src / name).write_bytes(content)
    return src


def archive(tmp_path: Path, version: str) -> Path:
    src = tmp_path / "cifar.tar.gz"
    with tarfile.open(src, "w:gz") as tar:
        directory = tarfile.TarInfo(FOLDERS[version])
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
        for name, content in reversed(files(version).items()):
            member = tarfile.TarInfo(f"{FOLDERS[version]}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return src


@pytest.mark.parametrize("make", [folder, archive])
@pytest.mark.parametrize("version", FOLDERS)
def test_every_version_gives_the_same_images_in_the_same_order(version: str, make: object, tmp_path: Path) -> None:
    src = make(tmp_path, version)
    there = sorted(tmp_path.rglob("*"))
    dataset = cifar10.dataset(src, None, "raw")
    order = fixed_order(30)
    expected = {"train": order[:27], "val": order[27:], "test": range(30, 36)}
    assert dataset.splits.keys() == expected.keys()
    for split, numbers in expected.items():
        images = pickle.loads(pickle.dumps(dataset.splits[split]))
        assert len(images) == len(numbers)
        for image, number in zip(images.read(range(len(images))), numbers, strict=True):
            assert np.array_equal(image.content, IMAGES[number])
            assert image.label == str(LABELS[number])
    assert dataset.name == "cifar10"
    assert dataset.spec.model_dump() == {
        "height": 32,
        "width": 32,
        "channels": 3,
        "num_bits": 8,
        "max_value": 255,
        "binary": False,
    }
    assert sorted(tmp_path.rglob("*")) == there


def test_prepared_shards_are_plain_webdataset(tmp_path: Path) -> None:
    prepare(cifar10.dataset(archive(tmp_path, "binary"), None, "raw"), tmp_path / "out")
    shards = webdataset.WebDataset(str(tmp_path / "out" / "test-000000.tar"), shardshuffle=False).decode()
    samples = list(shards)
    assert np.array_equal([sample["npy"] for sample in samples], IMAGES[30:])
    assert [sample["cls"] for sample in samples] == LABELS[30:]


def test_images_travel_without_their_pixels(tmp_path: Path) -> None:
    dataset = cifar10.dataset(folder(tmp_path, "binary"), None, "raw")
    assert len(pickle.dumps(dataset)) < 3072


def test_another_size_has_another_name(tmp_path: Path) -> None:
    dataset = cifar10.dataset(folder(tmp_path, "binary"), 16, "png")
    assert (dataset.name, dataset.spec.shape, dataset.format) == ("cifar10-16", (3, 16, 16), "png")


def test_a_changed_file_changes_the_identity_and_is_read_again(tmp_path: Path) -> None:
    src = folder(tmp_path, "binary")
    before = cifar10.dataset(src, None, "raw")
    assert cifar10.dataset(src, None, "raw").identity == before.identity
    path = src / "test_batch.bin"
    path.write_bytes(bytes([9]) + path.read_bytes()[1:])
    os.utime(path, ns=(1, 1))
    after = cifar10.dataset(src, None, "raw")
    assert after.identity != before.identity
    assert [image.label for image in after.splits["test"].read(range(1))] == ["9"]


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(
        ValueError,
        match=r"has no images of CIFAR-10: expected data_batch_1\.bin to .* in a folder or .*; found notes\.txt$",
    ):
        cifar10.dataset(tmp_path, None, "raw")
    with pytest.raises(ValueError, match=r"no folder"):
        cifar10.dataset(tmp_path / "absent", None, "raw")


@pytest.mark.parametrize(("version", "suffix"), [("binary", ".bin"), ("python 2", "")])
def test_a_batch_is_missing(version: str, suffix: str, tmp_path: Path) -> None:
    src = folder(tmp_path, version)
    (src / f"data_batch_3{suffix}").unlink()
    with pytest.raises(ValueError, match=rf"lacks data_batch_3{suffix}: expected"):
        cifar10.dataset(src, None, "raw")


def test_a_binary_batch_is_cut_short(tmp_path: Path) -> None:
    src = folder(tmp_path, "binary")
    path = src / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"data_batch_2\.bin has 18437 bytes, expected a multiple of 3073"):
        cifar10.dataset(src, None, "raw")


@pytest.mark.parametrize("count", [5, 7])
def test_labels_of_another_number(count: int, tmp_path: Path) -> None:
    held = {"data": np.zeros((EACH, 3072), np.uint8), "labels": [1] * count}
    src = folder(tmp_path, "python 2", data_batch_4=python2_pickle.dumps(held))
    with pytest.raises(ValueError, match=rf"data_batch_4 has 6 images and {count} labels"):
        cifar10.dataset(src, None, "raw")


def test_labels_that_are_no_classes(tmp_path: Path) -> None:
    held = {"data": np.zeros((EACH, 3072), np.uint8), "labels": [10] * EACH}
    src = folder(tmp_path, "python 2", test_batch=python2_pickle.dumps(held))
    with pytest.raises(ValueError, match=r"has labels 10\.\.10, expected 0\.\.9"):
        cifar10.dataset(src, None, "raw")


def test_a_pickle_that_calls_something(tmp_path: Path) -> None:
    attack = b"\x80\x02cos\nsystem\nU\x09touch ranx\x85R."
    with pytest.raises(ValueError, match=r"data_batch_1 is no pickle .* it names os\.system, which is refused"):
        cifar10.dataset(folder(tmp_path, "python 2", data_batch_1=attack), None, "raw")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_an_archive_with_links_or_devices(kind: bytes, tmp_path: Path) -> None:
    src = tmp_path / "bad.tar.gz"
    with tarfile.open(src, "w:gz") as tar:
        member = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with pytest.raises(ValueError, match=r"data_batch_1\.bin' that is a link or a device"):
        cifar10.dataset(src, None, "raw")


@pytest.mark.parametrize("name", ["/data_batch_1.bin", "../data_batch_1.bin", "a/../../data_batch_1.bin"])
def test_an_archive_with_names_that_lead_elsewhere(name: str, tmp_path: Path) -> None:
    src = tmp_path / "bad.tar.gz"
    with tarfile.open(src, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(ValueError, match=r"absolute names and \.\. are not allowed"):
        cifar10.dataset(src, None, "raw")


def test_an_archive_that_is_cut_short(tmp_path: Path) -> None:
    src = archive(tmp_path, "binary")
    src.write_bytes(src.read_bytes()[: src.stat().st_size // 2])
    with pytest.raises(ValueError, match="damaged or cut short"):
        cifar10.dataset(src, None, "raw")


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    src = tmp_path / "cifar.tar.gz"
    src.write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(ValueError, match=r"is no \.tar\.gz"):
        cifar10.dataset(src, None, "raw")
