import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import webdataset
import xxhash
from array_images import ArrayImages, SlowImages, array_dataset

from attvae.data.manifest import Manifest
from data_prep.dataset import Dataset, Image, Rejected
from data_prep.writer import prepare, prepare_unpacked

# A preparation that takes a second or two, as a process of its own.
SLOW = """
import sys
from pathlib import Path
import numpy as np
from array_images import SlowImages, array_dataset
from data_prep.writer import prepare
prepare(array_dataset(SlowImages(np.full((60, 4, 4, 3), 77, np.uint8))), Path(sys.argv[1]), workers=int(sys.argv[2]))
"""
PIXELS = np.full((60, 4, 4, 3), 77, np.uint8)


@pytest.fixture
def dataset() -> Dataset:
    """Shards of 5, 5 and 2."""
    return array_dataset(ArrayImages(np.arange(12 * 4, dtype=np.uint8).reshape(12, 2, 2, 1)))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def members(shard: Path) -> list[str]:
    with tarfile.open(shard) as tar:
        return tar.getnames()


def test_names_and_manifest(dataset: Dataset, tmp_path: Path) -> None:
    prepare(dataset, tmp_path / "a" / "b")
    manifest = Manifest.read(tmp_path / "a" / "b")
    assert [(shard.file, shard.samples) for shard in manifest.shards("val")] == [
        ("val-000000.tar", 5),
        ("val-000001.tar", 5),
        ("val-000002.tar", 2),
    ]
    shards = [shard.file for split in ("train", "val", "test") for shard in manifest.shards(split)]
    assert set(contents(tmp_path / "a" / "b")) == {"manifest.json", *shards}


def test_plain_webdataset_code_and_tar_read_the_shards(dataset: Dataset, tmp_path: Path) -> None:
    labelled = replace(dataset, splits={**dataset.splits, "val": ArrayImages(np.ones((3, 2, 2, 1), np.uint8), "7")})
    prepare(labelled, tmp_path)
    url = str(tmp_path / "train-000001.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in range(5, 10)]
    assert [sample["json"]["number"] for sample in samples] == [5, 6, 7, 8, 9]
    assert np.array_equal([sample["npy"] for sample in samples], dataset.splits["train"].pixels[5:10])
    listing = subprocess.run(["tar", "tf", tmp_path / "val-000000.tar"], capture_output=True, text=True, check=True)
    assert listing.stdout.split()[:3] == ["000000000.npy", "000000000.cls", "000000001.npy"]
    assert listing.stderr == ""
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "xf", tmp_path / "val-000000.tar", "-C", unpacked], check=True)
    assert np.array_equal(np.load(unpacked / "000000001.npy"), np.ones((2, 2, 1), np.uint8))
    assert (unpacked / "000000001.cls").read_text() == "7"


def test_every_member_bears_its_checksum(dataset: Dataset, tmp_path: Path) -> None:
    prepare(dataset, tmp_path)
    with tarfile.open(tmp_path / "train-000000.tar") as tar:
        for member in tar:
            assert member.gname == "xxh3"
            assert member.uname == xxhash.xxh3_64(tar.extractfile(member).read()).hexdigest()
            assert (member.mtime, member.mode, member.uid, member.gid) == (0, 0o444, 0, 0)


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_the_same_source_gives_the_same_bytes(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    prepare(dataset, tmp_path / "one")
    monkeypatch.setattr("time.time", lambda: 2e9)
    prepare(dataset, tmp_path / "two", workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_complete_data_set_is_left_alone(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(dataset, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    capsys.readouterr()
    prepare(dataset, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert "complete and intact: nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["shorten", "flip", "remove", "manifest"])
def test_a_damaged_data_set_is_mended(
    dataset: Dataset, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(dataset, tmp_path)
    intact = contents(tmp_path)
    shard = tmp_path / "train-000001.tar"
    match damage:
        case "shorten":
            shard.write_bytes(shard.read_bytes()[:-512])
        case "flip":
            shard.write_bytes(b"\1" + shard.read_bytes()[1:])
        case "remove":
            shard.unlink()
        case "manifest":
            (tmp_path / "manifest.json").write_text("{")
    prepare(dataset, tmp_path)
    assert contents(tmp_path) == intact
    assert "preparing again, since" in capsys.readouterr().out


@dataclass(frozen=True)
class Interrupted(ArrayImages):
    """Ends at image 7, as Ctrl-C does it."""

    def read(self, numbers: range) -> Iterator[Image | Rejected]:
        for number, image in zip(numbers, super().read(numbers), strict=True):
            if number == 7:
                raise KeyboardInterrupt
            yield image


def interrupt(dataset: Dataset, out: Path) -> None:
    """Leaves the first shard of train."""
    images = Interrupted(dataset.splits["train"].pixels)
    with pytest.raises(KeyboardInterrupt):
        prepare(replace(dataset, splits={"train": images, "val": images, "test": images}), out)


def test_an_interrupted_preparation_goes_on(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(dataset, tmp_path / "through")
    again = tmp_path / "again"
    interrupt(dataset, again)
    assert set(contents(again)) == {"train-000000.tar", "progress.jsonl"}
    (again / "train-000001.tar.tmp").write_bytes(b"left by a kill")
    with (again / "progress.jsonl").open("a") as journal:
        journal.write('{"place": ["train", 1], "shar')
    written = (again / "train-000000.tar").stat().st_mtime_ns
    capsys.readouterr()
    prepare(dataset, again)
    assert "going on: 1 of 9 shards are there" in capsys.readouterr().out
    assert (again / "train-000000.tar").stat().st_mtime_ns == written
    assert contents(again) == contents(tmp_path / "through")


@pytest.mark.parametrize("change", ["source", "shard", "journal"])
def test_what_an_interrupted_preparation_left_is_used_only_if_it_fits(
    dataset: Dataset, tmp_path: Path, change: str
) -> None:
    interrupt(dataset, tmp_path)
    written = (tmp_path / "train-000000.tar").stat().st_mtime_ns
    match change:
        case "source":
            images = ArrayImages(dataset.splits["train"].pixels + 100)
            dataset = replace(dataset, identity="changed", splits=dict.fromkeys(dataset.splits, images))
        case "shard":
            with (tmp_path / "train-000000.tar").open("r+b") as shard:
                shard.truncate(1024)
        case "journal":
            (tmp_path / "progress.jsonl").write_text("{")
    prepare(dataset, tmp_path)
    assert (tmp_path / "train-000000.tar").stat().st_mtime_ns != written
    prepare(dataset, tmp_path.with_name("through"))
    assert contents(tmp_path) == contents(tmp_path.with_name("through"))


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Callable[[int], subprocess.Popen]]:
    """Starts the slow preparation into `tmp_path/slow`; gives its process once the first shard is under way."""
    started: list[subprocess.Popen] = []

    def start(workers: int) -> subprocess.Popen:
        command = [sys.executable, "-c", SLOW, tmp_path / "slow", str(workers)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["tests", "."])}
        started.append(subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL))
        wait_for(lambda: (tmp_path / "slow" / "progress.jsonl").exists())
        return started[0]

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(("workers", "shards"), [(1, 0), (1, 5), (2, 0), (2, 15), (2, 34)])
def test_killed_and_started_again_it_equals_an_uninterrupted_run(
    tmp_path: Path, slow: Callable[[int], subprocess.Popen], workers: int, shards: int
) -> None:
    """Killed with so many of the 36 shards written."""
    process = slow(workers)
    wait_for(lambda: len(list((tmp_path / "slow").glob("*.tar"))) >= shards)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "slow" / "manifest.json").exists()
    quick = array_dataset(SlowImages(PIXELS, seconds=0))
    prepare(quick, tmp_path / "slow")
    prepare(quick, tmp_path / "through")
    assert contents(tmp_path / "slow") == contents(tmp_path / "through")


def test_no_worker_outlives_its_parent(tmp_path: Path, slow: Callable[[int], subprocess.Popen]) -> None:
    process = slow(2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_for(lambda: (tmp_path / "slow" / "train-000000.tar").exists())
    workers = [int(pid) for pid in children.read_text().split()]
    assert len(workers) >= 2
    process.kill()
    process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_a_second_preparation_into_the_same_folder_is_refused(
    tmp_path: Path, slow: Callable[[int], subprocess.Popen]
) -> None:
    process = slow(1)
    quick = array_dataset(SlowImages(PIXELS, seconds=0))
    with pytest.raises(ValueError, match=r"another process is preparing data into .*slow: wait for it, or choose"):
        prepare(quick, tmp_path / "slow")
    assert process.wait(30) == 0
    prepare(quick, tmp_path / "through")
    assert contents(tmp_path / "slow") == contents(tmp_path / "through")


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands for it: the error comes from the same system calls."""
    program = (
        "import resource, sys; from pathlib import Path; from array_images import *;  "
        "from data_prep.writer import prepare; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); "
        "prepare(array_dataset(ArrayImages(np.zeros((12, 100, 100, 3), np.uint8))), Path(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "full"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["tests", "."])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    # 36 images of 30,000 bytes and their headers.
    said = rf"OSError: {tmp_path}/full is full \(.*\): the 36 images that are left need about 0.001 GB"
    assert re.search(said, done.stderr)
    assert set(contents(tmp_path / "full")) == {"progress.jsonl"}


def test_a_source_that_changed_is_prepared_again(
    dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(dataset, tmp_path)
    fewer = ArrayImages(dataset.splits["train"].pixels[:4])
    prepare(replace(dataset, identity="of today", splits=dict.fromkeys(dataset.splits, fewer)), tmp_path)
    assert "preparing again, since identity is 'never changes' there, 'of today' here" in capsys.readouterr().out
    assert set(contents(tmp_path)) == {"manifest.json", *(f"{split}-000000.tar" for split in dataset.splits)}


def test_a_new_version_replaces_the_old(dataset: Dataset, tmp_path: Path) -> None:
    prepare(replace(dataset, version="0"), tmp_path)
    prepare(dataset, tmp_path)
    assert Manifest.read(tmp_path).version == "1"


def test_another_data_set_is_not_overwritten(dataset: Dataset, tmp_path: Path) -> None:
    prepare(dataset, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"holds the data set 'images': choose another --out for 'eights'"):
        prepare(replace(dataset, name="eights"), tmp_path)
    assert contents(tmp_path) == before


def test_files_of_others_are_not_removed(dataset: Dataset, tmp_path: Path) -> None:
    """Plain webdataset tars have the names of our shards, too."""
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "train-extra.tar").write_text("mine")
    with webdataset.TarWriter(str(tmp_path / "train-000007.tar")) as tar:
        tar.write({"__key__": "a", "txt": "mine"})
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"train-000007\.tar was not written by this command: move it away"):
        prepare(dataset, tmp_path)
    assert contents(tmp_path) == before
    (tmp_path / "train-000007.tar").unlink()
    prepare(dataset, tmp_path)
    assert {"notes.txt", "train-extra.tar"} < set(contents(tmp_path))


def test_rejected_images_leave_gaps(dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In train, among them a whole shard."""
    images = replace(dataset.splits["train"], rejected=(1, 5, 6, 7, 8, 9))
    prepare(replace(dataset, splits={**dataset.splits, "train": images}), tmp_path)
    assert [(shard.file, shard.samples) for shard in Manifest.read(tmp_path).shards("train")] == [
        ("train-000000.tar", 4),
        ("train-000002.tar", 2),
    ]
    assert not (tmp_path / "train-000001.tar").exists()
    assert [name[:9] for name in members(tmp_path / "train-000000.tar")[::2]] == [
        "000000000",
        "000000002",
        "000000003",
        "000000004",
    ]
    rejected = json.loads((tmp_path / "rejected.json").read_text())
    assert rejected["train"][0] == {"file": "1.bmp", "reason": "damaged"}
    assert [len(rejected[split]) for split in ("train", "val", "test")] == [6, 0, 0]
    output = capsys.readouterr().out
    assert re.search(r"│ train │ +6 │ +2 │ +20,480 │ +6 │", output)
    assert "rejected 9.bmp: damaged\n" in output
    prepare(replace(dataset, version="2"), tmp_path)
    assert not (tmp_path / "rejected.json").exists()


def test_many_rejected_images_are_listed_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = ArrayImages(np.zeros((30, 2, 2, 1), np.uint8), rejected=tuple(range(1, 26)))
    prepare(array_dataset(images), tmp_path)
    output = capsys.readouterr().out
    assert output.count(": damaged\n") == 20
    assert "... and 55 more in rejected.json" in output


def test_a_split_of_which_every_image_is_rejected(dataset: Dataset, tmp_path: Path) -> None:
    images = replace(dataset.splits["val"], rejected=tuple(range(12)))
    with pytest.raises(ValueError, match=r"none of the 12 images of val can be read.* the first one, 0\.bmp: damaged"):
        prepare(replace(dataset, splits={**dataset.splits, "val": images}), tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_an_empty_split(dataset: Dataset, tmp_path: Path) -> None:
    none = ArrayImages(np.zeros((0, 2, 2, 1), np.uint8))
    with pytest.raises(ValueError, match=r"a test: no images for the split val"):
        prepare(replace(dataset, splits={**dataset.splits, "val": none}), tmp_path)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_with_other_channels(dataset: Dataset, tmp_path: Path, workers: int) -> None:
    images = ArrayImages(np.zeros((12, 2, 2, 3), np.uint8))
    with pytest.raises(ValueError, match=r'image (\d+) of test \{"number": \1\}: unequal channel counts: 3 in'):
        prepare(replace(dataset, splits={**dataset.splits, "test": images}), tmp_path, workers)
    assert not (tmp_path / "manifest.json").exists()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_format_that_cannot_hold_the_images_is_refused_before_any_work(dataset: Dataset, tmp_path: Path) -> None:
    deep = array_dataset(ArrayImages(np.zeros((12, 2, 2, 1), np.uint16)), format="jpg", max_value=65535)
    with pytest.raises(ValueError, match=r"--format jpg holds the values 0\.\.255, the images have 0\.\.65535"):
        prepare(deep, tmp_path)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(("failure", "kept"), [(OSError("disk"), True), (ValueError("damaged archive"), False)])
def test_a_source_that_is_unpacked_first(dataset: Dataset, tmp_path: Path, failure: Exception, kept: bool) -> None:
    """Its temporary files go at the end; those of a try that may succeed the next time stay until then."""

    def make(work: Path) -> Dataset:
        work.mkdir(exist_ok=True)
        (work / "unpacked.npy").touch()
        return dataset

    def fail(work: Path) -> Dataset:
        make(work)
        raise failure

    prepare(dataset, tmp_path / "through")
    with pytest.raises(type(failure), match=str(failure)):
        prepare_unpacked(fail, tmp_path / "out")
    assert (tmp_path / "out" / ".work" / "unpacked.npy").exists() == kept
    prepare_unpacked(make, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "through")


def test_workers_and_a_ray_cluster_exclude_each_other(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--workers are processes of this machine, --ray is a cluster instead"):
        prepare(dataset, tmp_path, workers=2, ray="auto")
