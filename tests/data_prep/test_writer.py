import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from attvae.data.manifest import Manifest
from attvae.spec import DataSpec
from data_prep import writer
from data_prep.writer import Dataset, Members, npy, prepare


def samples() -> Iterator[Members]:
    for value in range(7):
        yield {"npy": npy(np.full((2, 2, 1), value, np.uint8)), "json": b"{}"}


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> Dataset:
    monkeypatch.setattr(writer, "SHARD_SAMPLES", 3)
    spec = DataSpec(height=2, width=2, channels=1, num_bits=8, max_value=255)
    return Dataset("sevens", "1", "a test", spec, {"train": samples, "val": samples, "test": samples})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_names_and_manifest(dataset: Dataset, tmp_path: Path) -> None:
    prepare(dataset, tmp_path / "a" / "b")
    manifest = Manifest.read(tmp_path / "a" / "b")
    assert [(shard.file, shard.samples) for shard in manifest.shards("val")] == [
        ("val-000000.tar", 3),
        ("val-000001.tar", 3),
        ("val-000002.tar", 1),
    ]
    shards = [shard.file for split in ("train", "val", "test") for shard in manifest.shards(split)]
    assert set(contents(tmp_path / "a" / "b")) == {"manifest.json", *shards}


def test_the_same_source_gives_the_same_bytes(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(dataset, tmp_path / "one")
    monkeypatch.setattr("time.time", lambda: 2e9)
    prepare(dataset, tmp_path / "two")
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


def test_an_interrupted_preparation_is_completed(dataset: Dataset, tmp_path: Path) -> None:
    prepare(dataset, tmp_path / "through")

    def interrupted() -> Iterator[Members]:
        yield from list(samples())[:5]
        raise KeyboardInterrupt

    broken = Dataset(dataset.name, dataset.version, dataset.source, dataset.spec, {"train": interrupted})
    with pytest.raises(KeyboardInterrupt):
        prepare(broken, tmp_path / "again")
    assert set(contents(tmp_path / "again")) == {"train-000000.tar"}
    (tmp_path / "again" / "train-000001.tar.tmp").write_bytes(b"left by a kill")
    prepare(dataset, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "through")


def test_a_new_version_replaces_the_old(dataset: Dataset, tmp_path: Path) -> None:
    prepare(Dataset("sevens", "0", "a test", dataset.spec, {"train": samples}), tmp_path)
    prepare(dataset, tmp_path)
    assert Manifest.read(tmp_path).version == "1"


def test_another_data_set_is_not_overwritten(dataset: Dataset, tmp_path: Path) -> None:
    prepare(dataset, tmp_path)
    before = contents(tmp_path)
    other = Dataset("eights", "1", "a test", dataset.spec, dataset.splits)
    with pytest.raises(ValueError, match=r"holds the data set 'sevens': choose another --out for 'eights'"):
        prepare(other, tmp_path)
    assert contents(tmp_path) == before


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(name: str, out: Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["data_prep", name, "--out", str(out)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module("data_prep", run_name="__main__")
        return ended.value.code, capsys.readouterr().err

    assert run("digits", tmp_path / "digits") == (0, "")
    assert Manifest.read(tmp_path / "digits").name == "digits"

    code, message = run("photos", tmp_path / "digits")
    assert code == 2
    assert message == f"error: {tmp_path}/digits holds the data set 'digits': choose another --out for 'photos'\n"

    (tmp_path / "file").touch()
    code, message = run("digits", tmp_path / "file" / "digits")
    assert code == 2
    assert message.startswith("error: ")
    assert str(tmp_path / "file") in message
    assert message.count("\n") == 1
