import io
import json
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from sklearn.datasets import load_sample_image

from attvae.data.manifest import Manifest, Split
from data_prep.index import index
from data_prep.verify import verify

NAMES = ("train-0.tar", "train-1.tar", "validation-0.tar", "test-0.tar")
Globs = dict[Split, str | None]
NONE: Globs = {"train": None, "val": None, "test": None}


def picture(height: int = 8, width: int = 8, mode: str = "RGB", format: str = "PNG") -> bytes:
    photo = Image.fromarray(load_sample_image("china.jpg")[100 : 100 + height, 50 : 50 + width])
    file = io.BytesIO()
    photo.convert(mode).save(file, format)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


GREY = npy(np.zeros((4, 4, 1), np.uint8))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Tars of three samples each, as webdataset's own writer makes them; `odd` replaces the last image."""

    def write(extension: str, content: bytes, odd: bytes | None = None, names: tuple[str, ...] = NAMES) -> Path:
        for name in names:
            with webdataset.TarWriter(str(tmp_path / name)) as tar:
                for number in range(3):
                    last = odd is not None and (name, number) == (names[-1], 2)
                    tar.write({"__key__": f"a/{number}", extension: odd if last else content, "cls": "4"})
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("extension", "content", "format", "spec"),
    [
        ("png", picture(), "png", (8, 8, 3, 8)),
        ("png", picture(mode="P"), "png", (8, 8, 3, 8)),
        ("png", picture(6, 9, "L"), "png", (6, 9, 1, 8)),
        ("png", picture(mode="RGBA"), "png", (8, 8, 4, 8)),
        ("jpeg", picture(16, 12, format="JPEG"), "jpg", (16, 12, 3, 8)),
        ("npy", npy(np.zeros((5, 7, 2), np.uint16)), "raw", (5, 7, 2, 16)),
    ],
)
def test_images_of_one_size(
    write: Callable[..., Path], extension: str, content: bytes, format: str, spec: tuple[int, ...]
) -> None:
    folder = write(extension, content)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    index(folder, "mine", NONE, None)
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*.tar")}
    assert after == before
    manifest = Manifest.read(folder)
    found = manifest.spec
    assert (found.height, found.width, found.channels, found.num_bits) == spec
    assert (found.max_value, found.binary) == (2 ** spec[3] - 1, False)
    assert (manifest.name, manifest.format, manifest.any_size) == ("mine", format, False)
    files = {split: [shard.file for shard in shards] for split, shards in manifest.splits.items()}
    assert files == {"train": [*NAMES[:2]], "val": [NAMES[2]], "test": [NAMES[3]]}
    assert [shard.samples for shard in manifest.shards("train")] == [3, 3]
    assert verify(folder)


def test_many_workers_write_the_same(write: Callable[..., Path]) -> None:
    folder = write("png", picture())
    index(folder, "mine", NONE, None)
    alone = (folder / "manifest.json").read_bytes()
    index(folder, "mine", NONE, None, workers=2)
    assert (folder / "manifest.json").read_bytes() == alone


def test_images_of_many_sizes(write: Callable[..., Path]) -> None:
    """Some of them grey, as photographs are."""
    folder = write("jpg", picture(20, 30, format="JPEG"), odd=picture(40, 25, "L", "JPEG"))
    with pytest.raises(ValueError, match=r"the images have 20 to 40 rows and 25 to 30 columns: give --size N"):
        index(folder, "mine", NONE, None)
    assert not (folder / "manifest.json").exists()
    index(folder, "mine", NONE, 16)
    manifest = Manifest.read(folder)
    assert manifest.any_size
    assert manifest.spec.shape == (3, 16, 16)
    assert verify(folder)


def test_a_size_that_all_have_needs_no_scaling(write: Callable[..., Path]) -> None:
    folder = write("png", picture())
    index(folder, "mine", NONE, 8)
    assert not Manifest.read(folder).any_size
    index(folder, "mine", NONE, 4)
    assert Manifest.read(folder).any_size


def test_splits_by_globs(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = write("png", picture(), names=("train-0.tar", "train-1.tar", "train-2.tar", "extra.tar"))
    with pytest.raises(ValueError, match=r"no tars for val and test .* --val 'train-2\.tar' --test 'train-1\.tar'$"):
        index(folder, "mine", NONE, None)
    index(folder, "mine", {**NONE, "val": "train-2.tar", "test": "*-1.tar"}, None)
    files = {split: [shard.file for shard in shards] for split, shards in Manifest.read(folder).splits.items()}
    assert files == {"train": ["train-0.tar"], "val": ["train-2.tar"], "test": ["train-1.tar"]}
    assert "1 tars belong to no split: extra.tar" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--val 'v\*' fits none of the 4 tars, such as extra\.tar"):
        index(folder, "mine", {**NONE, "val": "v*", "test": "*-1.tar"}, None)
    with pytest.raises(ValueError, match=r"train-1\.tar belongs to --val and to --test"):
        index(folder, "mine", {**NONE, "val": "train-[12].tar", "test": "*-1.tar"}, None)


@pytest.mark.parametrize(
    ("extension", "content", "odd", "said"),
    [
        (
            "png",
            picture(),
            picture(mode="L"),
            r"unequal channel counts: 3 in train-0\.tar, sample a/0, 1 in test-0\.tar",
        ),
        ("png", picture(), b"no picture", r"test-0\.tar, sample a/2: no image file of a known kind"),
        ("npy", GREY, npy(np.zeros((4, 4, 1), np.uint16)), r"unequal bits: 8 in .* 16 in"),
        ("npy", GREY, npy(np.zeros((4, 4), np.uint8)), r"sample a/2: an array uint8 \(4, 4\)"),
        ("npy", GREY, npy(np.array([{}])), r"sample a/2: \.npy of object"),
        ("txt", b"words", None, r"train-0\.tar, sample a/0: no image among its members \(\.cls, \.txt\), expected"),
    ],
)
def test_what_is_not_of_one_kind(
    write: Callable[..., Path], extension: str, content: bytes, odd: bytes | None, said: str
) -> None:
    folder = write(extension, content, odd)
    with pytest.raises(ValueError, match=said):
        index(folder, "mine", NONE, None)
    assert not (folder / "manifest.json").exists()


def test_an_image_that_is_too_large_is_refused_by_its_header(write: Callable[..., Path]) -> None:
    """A PNG of 50,000 × 50,000 pixels needs 7.5 GB."""
    huge = bytearray(picture())
    huge[16:24] = (50_000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    folder = write("png", picture(), odd=bytes(huge))
    with pytest.raises(ValueError, match=r"sample a/2: .*(50000×50000|2500000000) pixels"):
        index(folder, "mine", NONE, None)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("/etc/1.png", tarfile.REGTYPE),
        ("../1.png", tarfile.REGTYPE),
        ("1.png", tarfile.SYMTYPE),
        ("1.png", tarfile.LNKTYPE),
        ("1.png", tarfile.BLKTYPE),
    ],
)
def test_members_that_no_shard_has(write: Callable[..., Path], name: str, kind: bytes) -> None:
    folder = write("png", picture())
    with tarfile.open(folder / "train-1.tar", "a") as tar:
        member = tarfile.TarInfo(name)
        member.type = kind
        member.linkname = "elsewhere"
        tar.addfile(member)
    with pytest.raises(ValueError, match=rf"train-1\.tar.*{name}"):
        index(folder, "mine", NONE, None)


def test_folders_without_tars(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none is no folder"):
        index(tmp_path / "none", "mine", NONE, None)
    with pytest.raises(ValueError, match=r"holds no tars named \*\.tar"):
        index(tmp_path, "mine", NONE, None)


def test_a_prepared_data_set_keeps_its_manifest(digits: Path) -> None:
    before = (digits / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds the data set 'digits', which has its manifest"):
        index(digits, "mine", NONE, None)
    assert json.loads(before)["name"] == "digits"
    assert (digits / "manifest.json").read_bytes() == before
