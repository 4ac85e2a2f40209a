import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from attvae.data import manifest
from attvae.data.manifest import Manifest, xxh3


@pytest.fixture
def prepared(prepare_images: Callable[..., Manifest], images: np.ndarray) -> Manifest:
    return prepare_images(images)


def edit(found: Manifest, change: Callable[[dict], object]) -> Path:
    path = Path(found.storage.address) / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path.parent


def test_read(prepared: Manifest) -> None:
    assert prepared.samples("train") == 23
    assert [shard.samples for shard in prepared.shards("train")] == [5, 5, 5, 5, 3]
    assert prepared.spec.shape == (3, 4, 6)


def test_a_missing_folder_is_named_with_the_command_that_prepares_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere does not exist: prepare it with `python -m data_prep NAME --out"):
        Manifest.read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"has no manifest\.json"):
        Manifest.read(tmp_path)


def test_broken_json(prepared: Manifest) -> None:
    folder = edit(prepared, lambda content: None)
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:-20])
    with pytest.raises(ValueError, match=r"manifest\.json is not JSON .* prepare it"):
        Manifest.read(folder)


def test_another_format_version(prepared: Manifest) -> None:
    folder = edit(prepared, lambda content: content.update(format_version=2))
    with pytest.raises(ValueError, match="format_version 2, this attvae reads 1"):
        Manifest.read(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda content: content.pop("spec"), "spec: Field required"),
        (lambda content: content["spec"].update(colour="red"), "spec.colour"),
        (lambda content: content["splits"]["train"][1].update(file="../other.tar"), r"splits.train.1.file"),
        (lambda content: content["splits"]["train"][1].update(samples=6), "fingerprint"),
        (lambda content: content["spec"].update(max_value=128), "fingerprint"),
    ],
)
def test_a_changed_manifest(prepared: Manifest, change: Callable[[dict], object], named: str) -> None:
    with pytest.raises(ValueError, match=rf"manifest.json is damaged \(.*{named}.*prepare it"):
        Manifest.read(edit(prepared, change))


def test_an_absent_split_names_those_that_are_there(prepared: Manifest) -> None:
    only_train = prepared.model_copy(update={"splits": {"train": prepared.shards("train")}})
    with pytest.raises(ValueError, match=r"no samples in split 'val', only in: train"):
        only_train.shards("val")


def test_check_shards(prepared: Manifest) -> None:
    prepared.check_shards("train")
    path = Path(prepared.address(prepared.shards("train")[2]))
    content = path.read_bytes()

    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=rf"train-000002.tar has {len(content) - 1} bytes, .* says {len(content)}: "):
        prepared.check_shards("train")
    prepared.check_shards("val")

    path.write_bytes(content[:600] + bytes([content[600] ^ 1]) + content[601:])
    with pytest.raises(ValueError, match=r"train-000002.tar has XXH3 [0-9a-f]{16}, the manifest says"):
        prepared.check_shards("train")

    path.unlink()
    with pytest.raises(ValueError, match=r"train-000002.tar is missing: prepare it with `python -m data_prep images"):
        prepared.check_shards("train")


def test_large_splits_are_not_read_to_be_checked(prepared: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "HASHED_BYTES", sum(shard.bytes for shard in prepared.shards("train")) - 1)
    monkeypatch.setattr(manifest, "xxh3", lambda path: pytest.fail(f"read {path}"))
    prepared.check_shards("train")


def test_xxh3_is_the_published_one(tmp_path: Path) -> None:
    """XXH3_64bits of the empty input with seed 0, from the reference implementation's documentation."""
    (tmp_path / "empty").touch()
    assert xxh3(tmp_path / "empty") == "2d06800538d394c2"
