import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
import xxhash

from attvae.data import tar as tar_module
from attvae.data.decode import decode
from attvae.data.manifest import CHECKSUM_GROUP, Manifest
from attvae.data.shard import DamagedError
from attvae.data.tar import OpenShards, read_index
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


def opened(files: list[tuple[Path, int]], kept: int = 5) -> OpenShards:
    named = [(str(path), samples) for path, samples in files]
    return OpenShards(lambda number: os.open(files[number][0], os.O_RDONLY), named, kept)


@pytest.fixture
def files(prepare_images: Callable[..., Manifest], images: np.ndarray, tmp_path: Path) -> list[tuple[Path, int]]:
    """The shards, 5 samples each, of 23 images, and their counts."""
    manifest = prepare_images(images)
    return [(tmp_path / "images" / shard.file, shard.samples) for shard in manifest.shards("train")]


def test_samples_are_those_that_webdataset_reads(files: list[tuple[Path, int]]) -> None:
    shards = opened(files)
    read = [shards[shard].read(index) for shard in range(5) for index in range(5 if shard < 4 else 3)]
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
    read = [opened([(path, 3)])[0].read(index) for index in range(3)]
    plain = webdataset.WebDataset(str(path), shardshuffle=False)
    assert read == [{k: v for k, v in sample.items() if k != "__local_path__"} for sample in plain]


@pytest.mark.parametrize("name", ["/etc/1.npy", "../1.npy", "a/../../1.npy"])
def test_a_member_outside_the_tar(tmp_path: Path, name: str) -> None:
    with pytest.raises(DamagedError, match=rf"t\.tar is refused: member '{name}' points out of the tar"):
        read_index(make_tar(tmp_path / "t.tar", ["0.npy", name]))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_member_that_is_no_plain_file(tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(DamagedError, match=r"t\.tar is refused: member '1\.npy' is not a plain file"):
        read_index(make_tar(tmp_path / "t.tar", ["1.npy"], kind))


def test_folders_are_passed_over(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "1.txt").write_text("x")
        tar.add(tmp_path / "d", "d")
    assert [entry.key for entry in read_index(tmp_path / "t.tar")] == ["d/1"]


def test_members_without_a_place_in_a_sample(tmp_path: Path) -> None:
    for name in ("README", ".hidden", "key."):
        with pytest.raises(ValueError, match=rf"member '{name}' is not named KEY\.EXTENSION"):
            read_index(make_tar(tmp_path / "t.tar", [name]))
    with pytest.raises(ValueError, match=r"sample 1 has two members \.npy"):
        read_index(make_tar(tmp_path / "t.tar", ["1.npy", "1.NPY"]))


def test_a_shard_cut_anywhere_is_an_error(files: list[tuple[Path, int]], tmp_path: Path) -> None:
    """But for what comes after its last image."""
    spec = DataSpec(height=4, width=6, channels=3, num_bits=8, max_value=255)
    whole = files[0][0].read_bytes()
    used = whole.index(b"000000004.cls")
    for length in [0, 1, 511, 512, 600, 1024, *range(1500, used, 487), used]:
        path = tmp_path / "cut.tar"
        path.write_bytes(whole[:length])
        cut = opened([(path, 5)])
        if length < used:
            with pytest.raises(DamagedError, match=r"cut\.tar(,| is damaged| is empty| is cut off| holds \d samples)"):
                [decode(cut[0].read(index), spec) for index in range(5)]
        else:
            [decode(cut[0].read(index), spec) for index in range(5)]


def test_every_flipped_bit_in_a_file_of_a_sample_is_found(files: list[tuple[Path, int]]) -> None:
    """The content's hash, or the header's own checksum, tells; the samples before it can be read."""
    path = files[0][0]
    whole = path.read_bytes()
    begin = whole.index(b"000000002.npy")  # header, 128 + 72 bytes, padding, header, one byte
    for place in [*range(0, 512 + 200, 41), *range(1024, 1536, 41), 512 + 199, 1536]:
        damaged = bytearray(whole)
        damaged[begin + place] ^= 1 << place % 8
        path.write_bytes(damaged)
        shard = opened([(path, 5)])[0]
        assert shard.read(1)["__key__"] == "000000001"
        with pytest.raises(DamagedError, match=r"train-000000\.tar(, sample 000000002| is damaged after [23] )"):
            [shard.read(index) for index in range(5)]


def test_the_owner_names_the_hash_of_the_content(files: list[tuple[Path, int]]) -> None:
    with tarfile.open(files[0][0]) as tar:
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            assert (member.gname, member.uname) == (CHECKSUM_GROUP, xxhash.xxh3_64_hexdigest(content.read()))


def test_a_count_that_is_not_the_manifests(files: list[tuple[Path, int]]) -> None:
    path = files[0][0]
    with pytest.raises(DamagedError, match=r"train-000000\.tar holds 5 samples, the manifest says 6"):
        opened([(path, 6)])[0].read(5)
    with pytest.raises(DamagedError, match=r"train-000000\.tar holds 5 samples, the manifest says 4"):
        opened([(path, 4)])[0].read(0)


def test_a_missing_shard_and_a_shard_that_is_no_tar(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match=r"none\.tar is missing"):
        read_index(tmp_path / "none.tar")
    (tmp_path / "text.tar").write_bytes(b"this is no tar" * 100)
    with pytest.raises(DamagedError, match=r"text\.tar is damaged"):
        read_index(tmp_path / "text.tar")


def test_open_files_are_bounded_and_closed(files: list[tuple[Path, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    reader = opened(files, kept=2)
    for shard in (0, 1, 2, 3, 4, 0, 3):
        reader[shard].read(0)
        assert len(os.listdir("/proc/self/fd")) <= before + 2
    monkeypatch.setattr(tar_module, "OPEN_SHARDS", 3)
    reader = opened(files, kept=100)
    for shard in range(5):
        reader[shard].read(0)
    assert len(os.listdir("/proc/self/fd")) == before + 3
    del reader
    assert len(os.listdir("/proc/self/fd")) == before
