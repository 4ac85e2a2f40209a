"""The layouts in which ImageNet lies about, made small: real JPEGs, and the few odd files that ImageNet has."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_sample_image

from attvae.data.manifest import Split
from data_prep import imagenet
from data_prep.dataset import Dataset, Rejected
from data_prep.dataset import Image as Sample

WNIDS = ["n01440764", "n01443537", "n01484850"]
# The devkit's numbers are not in the order of the WordNet ids; it also has inner nodes of the tree.
ILSVRC_IDS = {"n01484850": 1, "n01440764": 2, "n01443537": 3, "n00001740": 1001}
TRUTH = ["n01443537", "n01440764", "n01484850", "n01440764"]
TRAIN_EACH = 8
CMYK, PNG, GREY, CUT = "n01440764_3.JPEG", "n01443537_5.JPEG", "n01484850_0.JPEG", "n01484850_7.JPEG"


def photograph(number: int) -> Image.Image:
    photo = load_sample_image(("china.jpg", "flower.jpg")[number % 2])
    top, left = 7 * number, 11 * number
    return Image.fromarray(photo[top : top + 70 + number, left : left + 90 - number])


def file_of(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def train_files() -> dict[str, dict[str, bytes]]:
    files = {
        wnid: {f"{wnid}_{k}.JPEG": file_of(photograph(TRAIN_EACH * c + k)) for k in range(TRAIN_EACH)}
        for c, wnid in enumerate(WNIDS)
    }
    files["n01440764"][CMYK] = file_of(photograph(3).convert("CMYK"))
    files["n01443537"][PNG] = file_of(photograph(13), "PNG")
    files["n01484850"][GREY] = file_of(photograph(16).convert("L"))
    files["n01484850"][CUT] = files["n01484850"][CUT][:-500]
    return files


def val_files() -> dict[str, bytes]:
    return {f"ILSVRC2012_val_{k + 1:08d}.JPEG": file_of(photograph(30 + k)) for k in range(4)}


def pack(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


def packed(path: Path, members: dict[str, bytes]) -> bytes:
    pack(path, members)
    content = path.read_bytes()
    path.unlink()
    return content


def unpack(folder: Path, members: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, content in members.items():
        (folder / name).write_bytes(content)


def devkit(src: Path, truth: list[str]) -> None:
    kind = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_train_images", object)]
    synsets = np.array([(float(k), wnid, "words, of it", 1300.0) for wnid, k in ILSVRC_IDS.items()], dtype=kind)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets[:, None]})
    lines = "".join(f"{ILSVRC_IDS[wnid]}\n" for wnid in truth).encode()
    files = {"data/ILSVRC2012_validation_ground_truth.txt": lines, "data/meta.mat": meta.getvalue(), "readme.txt": b""}
    pack(src / imagenet.DEVKIT, {f"ILSVRC2012_devkit_t12/{name}": content for name, content in files.items()}, "w:gz")


@pytest.fixture(scope="module")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As distributed. The order of an archive's members is nothing to rely on."""
    src = tmp_path_factory.mktemp("tars")
    classes = {
        f"{wnid}.tar": packed(src / "inner.tar", dict(reversed(members.items())))
        for wnid, members in reversed(train_files().items())
    }
    pack(src / imagenet.TRAIN_TAR, classes)
    pack(src / imagenet.VAL_TAR, dict(sorted(val_files().items(), key=lambda file: file[0][::-1])))
    devkit(src, TRUTH)
    return src


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    src = tmp_path_factory.mktemp("folders")
    for wnid, members in train_files().items():
        unpack(src / "train" / wnid, members)
        unpack(src / "val" / wnid, {n: c for w, (n, c) in zip(TRUTH, val_files().items(), strict=True) if w == wnid})
    return src


def read(dataset: Dataset, split: Split) -> list[Sample | Rejected]:
    images = pickle.loads(pickle.dumps(dataset.splits[split]))
    return list(images.read(range(len(images))))


def accepted(dataset: Dataset) -> dict[str, Sample]:
    """All training images, val's too, by the names of their files."""
    both = read(dataset, "train") + read(dataset, "val")
    return {sample.info["file"].split("/")[1]: sample for sample in both if isinstance(sample, Sample)}


def test_originals_are_kept_to_the_byte(tars: Path) -> None:
    dataset = imagenet.dataset(tars, None, "jpg")
    assert (dataset.name, dataset.version, dataset.any_size) == ("imagenet", "ilsvrc2012-original", True)
    assert dataset.spec.shape == (3, 256, 256)
    found = accepted(dataset)
    for label, (wnid, members) in enumerate(train_files().items()):
        for name, content in members.items():
            if name == CUT:
                assert name not in found
                continue
            assert found[name].label == str(label)
            assert found[name].info == {"file": f"{wnid}/{name}"}
            if name not in (CMYK, PNG):
                assert found[name].content == content


def test_odd_files_become_rgb_jpegs(tars: Path) -> None:
    found = accepted(imagenet.dataset(tars, None, "jpg"))
    for name, original in ((CMYK, photograph(3)), (PNG, photograph(13))):
        content = found[name].content
        height, width, colours, subsampling = simplejpeg.decode_jpeg_header(content)
        assert (width, height, colours, subsampling) == (*original.size, "YCbCr", "444")
        difference = np.asarray(Image.open(io.BytesIO(content))).astype(int) - np.asarray(original)
        # Pillow's CMYK holds a photograph exactly (K = 0): what is left is the loss of one or two JPEGs.
        assert np.abs(difference).mean() < (8 if name == CMYK else 2)


def test_resized_pixels(tars: Path) -> None:
    dataset = imagenet.dataset(tars, 32, "raw")
    assert (dataset.name, dataset.version, dataset.any_size) == ("imagenet32", "ilsvrc2012-box", False)
    assert dataset.spec.shape == (3, 32, 32)
    found = accepted(dataset)
    grey = np.asarray(Image.open(io.BytesIO(train_files()["n01484850"][GREY])))
    assert np.array_equal(found[GREY].content, np.stack([grey] * 3, axis=2))
    assert np.array_equal(found[PNG].content, np.asarray(photograph(13)))


def test_test_is_the_validation_set_in_its_order(tars: Path) -> None:
    samples = read(imagenet.dataset(tars, None, "jpg"), "test")
    assert [sample.content for sample in samples] == list(val_files().values())
    assert [sample.label for sample in samples] == ["1", "0", "2", "0"]


def test_damage_is_rejected_by_name(tars: Path) -> None:
    dataset = imagenet.dataset(tars, None, "jpg")
    [rejected] = [s for split in ("train", "val") for s in read(dataset, split) if isinstance(s, Rejected)]
    assert rejected.file == f"n01484850/{CUT}"
    assert "truncated" in rejected.reason


def test_splits_are_cut_in_mixed_order(tars: Path) -> None:
    dataset = imagenet.dataset(tars, 32, "raw")
    assert {split: len(images) for split, images in dataset.splits.items()} == {"train": 22, "val": 2, "test": 4}
    labels = [sample.label for sample in read(dataset, "train") if isinstance(sample, Sample)]
    assert labels != sorted(labels)


@pytest.mark.parametrize("size", [None, 32])
def test_folders_give_the_same_as_tars(tars: Path, folders: Path, size: int | None) -> None:
    for split in ("train", "val", "test"):
        for one, other in zip(
            read(imagenet.dataset(tars, size, "jpg"), split),
            read(imagenet.dataset(folders, size, "jpg"), split),
            strict=True,
        ):
            assert one[1:] == other[1:]
            assert np.array_equal(one[0], other[0])


def test_flat_validation_folder(tars: Path, folders: Path, tmp_path: Path) -> None:
    (tmp_path / imagenet.TRAIN_TAR).symlink_to(tars / imagenet.TRAIN_TAR)
    unpack(tmp_path / "val", val_files())
    with pytest.raises(ValueError, match=r"has no ILSVRC2012_devkit_t12\.tar\.gz"):
        imagenet.dataset(tmp_path, None, "jpg")
    devkit(tmp_path, TRUTH)
    samples = read(imagenet.dataset(tmp_path, None, "jpg"), "test")
    assert [sample.label for sample in samples] == ["1", "0", "2", "0"]
    assert [sample.content for sample in samples] == list(val_files().values())


def test_identity_is_of_the_tars(tars: Path, folders: Path) -> None:
    identities = {imagenet.dataset(src, size, "jpg").identity for src in (tars, folders) for size in (None, 32)}
    assert len(identities) == 2


def test_originals_are_jpegs(tars: Path) -> None:
    with pytest.raises(ValueError, match=r"--format png .* give --size, or --format jpg"):
        imagenet.dataset(tars, None, "png")


def test_missing_files_are_named(tars: Path, tmp_path: Path) -> None:
    (tmp_path / "misc").mkdir()
    with pytest.raises(ValueError, match=r"neither ILSVRC2012_img_train\.tar nor a folder train: found misc"):
        imagenet.dataset(tmp_path, None, "jpg")
    (tmp_path / imagenet.TRAIN_TAR).symlink_to(tars / imagenet.TRAIN_TAR)
    with pytest.raises(ValueError, match=r"neither ILSVRC2012_img_val\.tar nor a folder val"):
        imagenet.dataset(tmp_path, None, "jpg")
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        imagenet.dataset(tmp_path, None, "jpg")


def test_more_truth_than_images(tars: Path, tmp_path: Path) -> None:
    for name in (imagenet.TRAIN_TAR, imagenet.VAL_TAR):
        (tmp_path / name).symlink_to(tars / name)
    devkit(tmp_path, [*TRUTH, "n01440764"])
    with pytest.raises(ValueError, match="classes of 5 validation images, found are 4"):
        imagenet.dataset(tmp_path, None, "jpg")
    (tmp_path / imagenet.DEVKIT).write_bytes((tars / imagenet.DEVKIT).read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"devkit_t12\.tar\.gz is damaged"):
        imagenet.dataset(tmp_path, None, "jpg")


def test_images_outside_of_class_folders(folders: Path, tmp_path: Path) -> None:
    unpack(tmp_path / "train", val_files())
    with pytest.raises(ValueError, match="lies in no class folder"):
        imagenet.dataset(tmp_path, None, "jpg")


def test_class_without_training_images(tmp_path: Path) -> None:
    unpack(tmp_path / "train" / WNIDS[0], train_files()[WNIDS[0]])
    unpack(tmp_path / "val" / WNIDS[1], val_files())
    with pytest.raises(ValueError, match="class 'n01443537' has validation images, but no training images"):
        imagenet.dataset(tmp_path, None, "jpg")
