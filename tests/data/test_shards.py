import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from attvae.data import shards
from attvae.data.decode import decode
from attvae.data.manifest import Manifest
from attvae.data.shards import ShardReader, read_index
from attvae.spec import DataSpec


def make_tar(path: Path, names: list[str], kind: bytes = tarfile.REGTYPE, format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.type = kind
            content = name.encode() if kind == tarfile.REGTYPE else b""
            member.size = len(content)
            member.linkname = "elsewhere"
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def reader(prepare_images: Callable[..., Manifest], images: np.ndarray) -> ShardReader:
    manifest = prepare_images(images)
    return ShardReader([(manifest.path(shard), shard.samples) for shard in manifest.shards("train")], kept=5)


def test_samples_are_those_that_webdataset_reads(reader: ShardReader) -> None:
    read = [reader.read(shard, index) for shard in range(5) for index in range(5 if shard < 4 else 3)]
    urls = list(dict.fromkeys(str(sample["__url__"]) for sample in read))
    plain = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert read == [{key: sample[key] for key in ("__key__", "__url__", "npy", "cls")} for sample in plain]
    assert [sample["__key__"] for sample in read] == [f"{number:09d}" for number in range(23)]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_other_writers(tmp_path: Path, format: int) -> None:
    """Folders, long names and extensions with dots, keyed as webdataset keys them."""
    long = "x" * 90
    names = ["a/1.jpg", "a/1.cls", "b/1.jpg", f"{long}/{long}.left.png", f"{long}/{long}.right.PNG"]
    path = make_tar(tmp_path / "t.tar", names, format=format)
    reader = ShardReader([(path, 3)], kept=1)
    read = [reader.read(0, index) for index in range(3)]
    plain = webdataset.WebDataset(str(path), shardshuffle=False)
    assert read == [{k: v for k, v in sample.items() if k != "__local_path__"} for sample in plain]


@pytest.mark.parametrize("name", ["/etc/1.npy", "../1.npy", "a/../../1.npy"])
def test_a_member_outside_the_tar(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"t\.tar: member '{name}' is not a plain file inside"):
        read_index(make_tar(tmp_path / "t.tar", ["0.npy", name]))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_member_that_is_no_plain_file(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(ValueError, match=r"t\.tar: member '1\.npy' is not a plain file inside"):
        read_index(make_tar(tmp_path / "t.tar", ["1.npy"], kind))


def test_members_without_a_place_in_a_sample(tmp_path: Path) -> None:
    for name in ("README", ".hidden", "key."):
        with pytest.raises(ValueError, match=rf"member '{name}' is not named KEY\.EXTENSION"):
            read_index(make_tar(tmp_path / "t.tar", [name]))
    with pytest.raises(ValueError, match=r"sample 1 has two members \.npy"):
        read_index(make_tar(tmp_path / "t.tar", ["1.npy", "1.NPY"]))


def test_a_shard_cut_anywhere_is_an_error(reader: ShardReader, tmp_path: Path) -> None:
    """But for its closing blocks of zeros, which hold nothing. Cut between a label and its image, decoding tells."""
    spec = DataSpec(height=4, width=6, channels=3, num_bits=8, max_value=255)
    whole = Path(str(reader.read(0, 0)["__url__"])).read_bytes()
    used = len(whole.rstrip(b"\0"))
    for length in [0, 1, 511, 512, 600, 1024, *range(1500, used, 487), used]:
        path = tmp_path / "cut.tar"
        path.write_bytes(whole[:length])
        reader = ShardReader([(path, 5)], kept=1)
        if length < used:
            with pytest.raises(ValueError, match=r"cut\.tar(,| is damaged| holds \d samples| ends within)"):
                [decode(reader.read(0, index), spec) for index in range(5)]


def test_a_shard_that_is_cut_after_its_index_was_read(reader: ShardReader) -> None:
    path = Path(str(reader.read(1, 0)["__url__"]))
    os.truncate(path, 2000)
    with pytest.raises(ValueError, match=r"train-000001\.tar ends within sample 000000009"):
        reader.read(1, 4)


def test_a_count_that_is_not_the_manifests(reader: ShardReader) -> None:
    path = Path(str(reader.read(0, 0)["__url__"]))
    with pytest.raises(ValueError, match=r"train-000000\.tar holds 5 samples, the manifest says 6"):
        ShardReader([(path, 6)], kept=1).read(0, 0)


def test_a_missing_shard_and_a_shard_that_is_no_tar(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.tar is missing"):
        read_index(tmp_path / "none.tar")
    (tmp_path / "text.tar").write_bytes(b"this is no tar" * 100)
    with pytest.raises(ValueError, match=r"text\.tar is damaged"):
        read_index(tmp_path / "text.tar")


def test_open_files_are_bounded_and_closed(reader: ShardReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "OPEN_FILES", 2)
    before = len(os.listdir("/proc/self/fd"))
    for shard in (0, 1, 2, 3, 4, 0, 3):
        reader.read(shard, 0)
        assert len(os.listdir("/proc/self/fd")) <= before + 2
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before
