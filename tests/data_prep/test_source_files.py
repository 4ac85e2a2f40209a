import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from data_prep.dataset import Image, Rejected
from data_prep.source_files import FolderFiles, ImageFiles, Names, found_in, identity, list_folder
from data_prep.tar_members import TarMembers

SUFFIXES = frozenset({".png"})


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())


def test_names() -> None:
    given = ["a.png", "é/ü.png", "", os.fsdecode(b"\xff.png"), "b" * 300]
    names = Names.of(given)
    assert list(names) == [names[k] for k in range(5)] == given
    assert len(Names.of([])) == 0


def test_a_million_files_stay_small() -> None:
    """Compared with what a list of their names alone would take."""
    given = [f"n{k % 1000:08d}/n{k % 1000:08d}_{k:08d}.JPEG" for k in range(1_000_000)]
    places = np.arange(1_000_000, dtype=np.int64)
    files = TarMembers(Path("train.tar"), Names.of(given), places, places)
    size = len(pickle.dumps(ImageFiles(files, bytes, places.astype(np.int16)), protocol=5))
    assert size < sum(map(len, given)) + 1_000_000 * (3 * 8 + 2) + 1000
    assert size < 0.8 * sum(map(sys.getsizeof, given))


def test_listing_is_recursive_sorted_and_by_suffix(tmp_path: Path) -> None:
    touch(
        *(
            tmp_path / name
            for name in ("b/2.png", "b/10.PNG", "a/x/y.png", "z.png", "a.txt", ".hidden.png", ".git/c.png")
        )
    )
    assert list_folder(tmp_path, "", SUFFIXES) == ["a/x/y.png", "b/10.PNG", "b/2.png", "z.png"]
    assert list_folder(tmp_path, "b", SUFFIXES) == ["b/10.PNG", "b/2.png"]


def test_links_stay_inside(tmp_path: Path) -> None:
    src = tmp_path / "src"
    touch(src / "pool/1.png", tmp_path / "outside/2.png")
    (src / "a").mkdir()
    (src / "a/same.png").symlink_to("../pool/1.png")
    (src / "a/up").symlink_to("..")  # a circle
    (src / "readme.txt").symlink_to(tmp_path / "outside/2.png")  # no image: of no interest
    assert list_folder(src, "", SUFFIXES) == ["a/same.png", "pool/1.png"]
    for name, target in (("leak.png", tmp_path / "outside/2.png"), ("leak", tmp_path / "outside")):
        (src / name).symlink_to(target)
        with pytest.raises(ValueError, match=rf"{name} is a symbolic link that leads out of"):
            list_folder(src, "", SUFFIXES)
        (src / name).unlink()
    (src / "train").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match=r"train is a symbolic link that leads out of"):
        list_folder(src, "train", SUFFIXES)
    (src / "train").unlink()
    (src / "lost.png").symlink_to("nothing.png")
    with pytest.raises(ValueError, match="leads to nothing"):
        list_folder(src, "", SUFFIXES)


def test_reading_names_what_is_rejected(tmp_path: Path) -> None:
    touch(*(tmp_path / f"{name}.png" for name in "abc"))

    def content(file: bytes) -> bytes:
        if file == b"b.png":
            raise ValueError("not this one")
        return file

    names = Names.of(list_folder(tmp_path, "", SUFFIXES))
    images = ImageFiles(FolderFiles(tmp_path, names), content, np.array([5, 6, 7]))
    assert list(images.read(range(3))) == [
        Image(b"a.png", "5", {"file": "a.png"}),
        Rejected("b.png", "not this one"),
        Image(b"c.png", "7", {"file": "c.png"}),
    ]
    (tmp_path / "c.png").unlink()
    with pytest.raises(OSError, match=r"c\.png"):  # the source changed: nothing to be rejected quietly
        list(images.read(range(3)))


def test_identity_follows_names_sizes_and_times(tmp_path: Path) -> None:
    touch(tmp_path / "a", tmp_path / "b")
    first = identity(tmp_path, ["a", "b"])
    assert identity(tmp_path, ["a", "b"]) == first
    assert identity(tmp_path, ["a"]) != first
    os.utime(tmp_path / "a", ns=(1, 1))
    assert (second := identity(tmp_path, ["a", "b"])) != first
    (tmp_path / "a").write_bytes(b"more")
    os.utime(tmp_path / "a", ns=(1, 1))
    assert identity(tmp_path, ["a", "b"]) != second


def test_what_is_found_is_said(tmp_path: Path) -> None:
    assert found_in(tmp_path) == "nothing"
    touch(*(tmp_path / f"{k}" for k in range(10)))
    assert found_in(tmp_path) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
    with pytest.raises(ValueError, match="is no folder"):
        found_in(tmp_path / "0")
