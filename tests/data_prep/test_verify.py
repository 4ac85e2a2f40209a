import re
from pathlib import Path

import numpy as np
import pytest
from array_images import ArrayImages, array_dataset

from attvae.data.manifest import Manifest, fingerprint, xxh3
from data_prep.verify import verify
from data_prep.writer import prepare


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
    prepare(array_dataset(ArrayImages(pixels)), tmp_path / "images")
    return tmp_path / "images"


def faults(folder: Path, capsys: pytest.CaptureFixture[str], workers: int = 1) -> list[str]:
    capsys.readouterr()
    intact = verify(folder, workers)
    output = capsys.readouterr().out
    assert intact == ("is intact" in output) == ("wrong:" not in output)
    return re.findall("wrong: (.*)", output)


def rewrite_manifest(folder: Path) -> None:
    """As if the shards had been written as they are now."""
    manifest = Manifest.read(folder)
    splits = {
        split: tuple(
            shard.model_copy(update={"xxh3": xxh3(folder / shard.file), "bytes": (folder / shard.file).stat().st_size})
            for shard in shards
        )
        for split, shards in manifest.splits.items()
    }
    changed = manifest.model_copy(update={"splits": splits, "fingerprint": fingerprint(manifest.spec, splits)})
    (folder / "manifest.json").write_text(changed.model_dump_json())


@pytest.mark.parametrize("workers", [1, 2])
def test_an_intact_data_set(prepared: Path, capsys: pytest.CaptureFixture[str], workers: int) -> None:
    assert faults(prepared, capsys, workers) == []
    verify(prepared)
    assert "is intact: 36 samples in 9 shards, fingerprint " in capsys.readouterr().out


def test_a_flipped_bit(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the pixels of the second sample, whose files begin behind four blocks."""
    shard = prepared / "val-000001.tar"
    content = bytearray(shard.read_bytes())
    content[4 * 512 + 512 + 130] ^= 1
    shard.write_bytes(content)
    of_shard, of_sample = faults(prepared, capsys, workers=2)
    assert re.search(r"val-000001\.tar has XXH3 [0-9a-f]{16}, the manifest says [0-9a-f]{16}$", of_shard)
    assert re.search(r"val-000001\.tar, sample 000000006: \.npy is not what was written", of_sample)
    rewrite_manifest(prepared)
    assert faults(prepared, capsys) == [of_sample]


def test_a_truncated_shard(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = prepared / "train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:4700])
    found = "\n".join(faults(prepared, capsys))
    assert "train-000000.tar has 4700 bytes, the manifest says 20480" in found
    assert "train-000000.tar is cut off after 2 samples" in found
    assert "train-000000.tar holds 2 samples, the manifest says 5" in found


def test_missing_and_empty_shards(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (prepared / "train-000000.tar").unlink()
    (prepared / "test-000000.tar").write_bytes(b"")
    missing, size, empty = faults(prepared, capsys)
    assert missing.endswith("train-000000.tar is missing")
    assert "test-000000.tar has 0 bytes" in size
    assert "test-000000.tar is empty" in empty


def test_a_sample_too_many(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (prepared / "train-000002.tar").write_bytes((prepared / "train-000001.tar").read_bytes())
    assert "train-000002.tar holds 5 samples, the manifest says 2" in faults(prepared, capsys)[-1]


def test_images_that_are_not_the_specs(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = Manifest.read(prepared)
    spec = manifest.spec.model_copy(update={"height": 5})
    changed = manifest.model_copy(update={"spec": spec, "fingerprint": fingerprint(spec, manifest.splits)})
    (prepared / "manifest.json").write_text(changed.model_dump_json())
    capsys.readouterr()
    assert not verify(prepared)
    output = capsys.readouterr().out
    assert output.count("wrong: ") == 20
    assert "... and 16 more" in output
    assert "sample 000000000: found uint8 (4, 4, 3), the manifest says uint8 (5, 4, 3)" in output
