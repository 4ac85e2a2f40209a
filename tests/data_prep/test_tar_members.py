"""Against what tarfile itself extracts, and against archives that nobody should trust."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_prep.tar_members import Member, TarMembers, list_tar

RANDOM = np.random.default_rng(0)


def pack(members: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outer.tar"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_read_where_they_lie(path: Path, format: int) -> None:
    long = "x" * (90 if format == tarfile.USTAR_FORMAT else 150)
    given = {f"{long}/{k}": RANDOM.bytes(size) for k, size in enumerate((0, 1, 511, 512, 513, 10_000))}
    path.write_bytes(pack(given, format))
    files = pickle.loads(pickle.dumps(TarMembers.of(path, list_tar(path))))
    assert {name: files.read(k) for k, name in enumerate(files.names)} == given


def test_tars_in_tars(path: Path) -> None:
    given = {f"n{c}.tar": {f"n{c}_{k}.JPEG": RANDOM.bytes(100 + 300 * k) for k in range(4)} for c in range(3)}
    path.write_bytes(pack({name: pack(members) for name, members in given.items()}))
    for inner in list_tar(path):
        files = TarMembers.of(path, list_tar(path, inner))
        assert {name: files.read(k) for k, name in enumerate(files.names)} == given[inner.name]


def test_folders_are_left_out(path: Path, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/1.png").write_bytes(b"1")
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "train", "train")
    assert [member.name for member in list_tar(path)] == ["train/1.png"]


@pytest.mark.parametrize("name", ["/etc/passwd", "../up.png", "a/../../up.png", ".."])
def test_names_that_lead_elsewhere(path: Path, name: str) -> None:
    path.write_bytes(pack({"good.png": b"1", name: b"2"}))
    with pytest.raises(ValueError, match="absolute names and"):
        list(list_tar(path))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices(path: Path, kind: bytes) -> None:
    with tarfile.open(path, "w") as tar:
        header = tarfile.TarInfo("odd.png")
        header.type, header.linkname = kind, "/etc/passwd"
        tar.addfile(header)
    with pytest.raises(ValueError, match=r"odd\.png.*link, a device"):
        list(list_tar(path))


def test_every_cut_is_found(path: Path) -> None:
    """Also one between two members, which tarfile takes for the end."""
    whole = pack({f"{k}.png": RANDOM.bytes(700) for k in range(5)})
    end = 5 * (512 + 1024)
    assert any(whole[:end])
    assert not any(whole[end:])
    for cut in (0, 1, 511, 512, 1024, 1536, 2048, 2049, 3 * 1536, end - 100, end):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"cut short|damaged"):
            list(list_tar(path))
    path.write_bytes(whole[: end + 512])  # one block of zeros will do
    assert len(list(list_tar(path))) == 5


def test_damaged_header(path: Path) -> None:
    whole = bytearray(pack({f"{k}.png": bytes(700) for k in range(5)}))
    whole[2 * 1536 + 5] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="damaged"):
        list(list_tar(path))


def test_inner_tar_that_claims_more_than_it_holds(path: Path) -> None:
    inner = pack({"a.JPEG": bytes(2000), "b.JPEG": bytes(50_000)})
    path.write_bytes(pack({"n0.tar": inner[:5000], "n1.tar": inner}))
    first, second = list_tar(path)
    assert [member.name for member in list_tar(path, second)] == ["a.JPEG", "b.JPEG"]
    with pytest.raises(ValueError, match=r"n0\.tar is cut short: it ends in the middle of b\.JPEG"):
        list(list_tar(path, first))


def test_compressed(path: Path) -> None:
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("1.png"))
    with pytest.raises(ValueError, match="no uncompressed tar"):
        list(list_tar(path))


def test_nothing_in_it(path: Path) -> None:
    path.write_bytes(bytes(10240))
    with pytest.raises(ValueError, match="holds no files"):
        TarMembers.of(path, list_tar(path))


def test_changed_after_the_listing(path: Path) -> None:
    path.write_bytes(b"12")
    with pytest.raises(OSError, match="changed since"):
        TarMembers.of(path, [Member("1.png", 1, 5)]).read(0)
