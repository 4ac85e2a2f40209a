"""Checkpoints: what is saved by any engine is loaded by any other; what is damaged is refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from spawn import run_on_ranks
from torch import nn

from attvae import checkpoint
from attvae.checkpoint import Checkpoint
from attvae.engine import rendezvous
from attvae.engine.batch import divide
from attvae.engine.config import EngineConfig
from attvae.engine.plain import PlainEngine
from attvae.engine.protocol import Engine
from attvae.engine.zero import ZeroEngine
from attvae.optim.adamax import Adamax
from attvae.optim.config import OptimConfig

BATCH, STEPS, SAVED_AT = 12, 8, 5


def regression() -> nn.Module:
    """Odd sizes, so that no number of ranks divides them, and a buffer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 13), nn.BatchNorm1d(13), nn.SiLU(), nn.Linear(13, 5))


def engine_for(world: rendezvous.World, module: nn.Module, name: str, stage: int, start: Checkpoint | None) -> Engine:
    cfg = EngineConfig(name=name, stage=stage, precision="fp32")
    optimizer = Adamax(module.parameters(), OptimConfig())
    restored: dict[str, Any] = {"restored": start.tensor, "updates": start.state["updates"]} if start else {}
    if name == "plain":
        return PlainEngine(module, optimizer, world, cfg, clip_norm=1.0, **restored)
    return ZeroEngine(module, optimizer, world, cfg, batch=divide(BATCH, world.size, None), clip_norm=1.0, **restored)


def on_rank(folder: str, runs: list[tuple[str, int, int, int | None]]) -> list[list[float]]:
    world = rendezvous.join()
    try:
        return [train(world, Path(folder), *run) for run in runs]
    finally:
        rendezvous.leave()


def train(world: rendezvous.World, folder: Path, name: str, stage: int, first: int, save_at: int | None) -> list[float]:
    """The losses of steps first..7, from the checkpoint of step `first` if there is one."""
    module = regression().eval()  # moving statistics as they are: batch statistics depend on the ranks
    path = folder / f"{first:012d}"
    start = Checkpoint(path) if path.exists() else None
    if start:
        for p in module.parameters():
            nn.init.constant_(p, 7.0)
        start.load_into(module, weights="parameters")
    engine = engine_for(world, module, name, stage, start)
    losses = []
    for step in range(first, STEPS):
        x = torch.randn(BATCH, 7, generator=torch.Generator().manual_seed(step))[world.rank :: world.size]

        def loss(forward: nn.Module, x: torch.Tensor = x) -> torch.Tensor:
            return (forward(x) - x[:, :5]).square().mean()

        with torch.no_grad():
            losses.append(float(world.sum(loss(module))) / world.size)
        engine.train_step([loss], 1e-2)
        if step + 1 == save_at:
            checkpoint.save(folder / f"{save_at:012d}", engine, {"samples_seen": 0, "updates": engine.updates})
    return losses


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A checkpoint in mid-run, saved by ZeRO-2 on two ranks, and the losses of that undisturbed run."""
    folder = tmp_path_factory.mktemp("checkpoints")
    [losses] = run_on_ranks(on_rank, 2, str(folder), [("zero", 2, 0, SAVED_AT)])[0]
    return folder, losses


@pytest.fixture
def copied(saved: tuple[Path, list[float]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved[0] / f"{SAVED_AT:012d}", tmp_path / "copy"))


@pytest.mark.parametrize(
    ("ranks", "cases"), [(1, [("plain", 0), ("zero", 0), ("zero", 1), ("zero", 2)]), (2, [("zero", 1)])]
)
def test_any_engine_goes_on_from_it(saved: tuple[Path, list[float]], ranks: int, cases: list[tuple[str, int]]) -> None:
    folder, undisturbed = saved
    runs = [(name, stage, SAVED_AT, None) for name, stage in cases]
    for losses in run_on_ranks(on_rank, ranks, str(folder), runs)[0]:
        assert losses == pytest.approx(undisturbed[SAVED_AT:], rel=1e-6)


def test_it_is_named_fp32_tensors(saved: tuple[Path, list[float]]) -> None:
    """Plain safetensors reads it; every tensor once over the ranks' files."""
    tensors: dict[str, torch.Tensor] = {}
    files = sorted((saved[0] / f"{SAVED_AT:012d}").glob("*.safetensors"))
    for file in files:
        part = load_file(file)
        assert part.keys().isdisjoint(tensors)
        tensors |= part
    assert len(files) == 2
    names = [name for name, _ in regression().named_parameters()]
    kinds = ("parameters", *Adamax.STATE)
    expected = {f"{kind}/{name}" for kind in kinds for name in names}
    expected |= {f"buffers/{name}" for name, _ in regression().named_buffers()}
    assert tensors.keys() == expected
    assert all(t.dtype == torch.float32 for key, t in tensors.items() if not key.endswith("num_batches_tracked"))
    moved = tensors["parameters/0.weight"] - tensors["ema/0.weight"]
    assert 0 < moved.abs().max() < 0.1, "the average follows the weights"


def test_a_flipped_bit_is_found(copied: Path) -> None:
    file = copied / "tensors-0001.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"tensors-0001\.safetensors does not match its hash"):
        Checkpoint(copied)


def test_a_truncated_file_is_found(copied: Path) -> None:
    file = copied / "tensors-0000.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"tensors-0000\.safetensors does not match"):
        Checkpoint(copied)


@pytest.mark.parametrize("name", ["manifest.json", "state.json", "tensors-0000.safetensors"])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        Checkpoint(copied)


def test_a_manifest_cannot_name_files_outside(copied: Path) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied.parent / "x").write_text("")
    manifest["files"]["../x"] = {"bytes": 0, "xxh3": ""}
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="is missing"):
        Checkpoint(copied)


def test_another_models_checkpoint_is_refused(copied: Path) -> None:
    found = Checkpoint(copied)
    with pytest.raises(ValueError, match=r"another model"):
        found.load_into(nn.Sequential(nn.Linear(7, 13)), weights="parameters")
    wider = nn.Sequential(nn.Linear(7, 14), nn.BatchNorm1d(14), nn.SiLU(), nn.Linear(14, 5))
    with pytest.raises(ValueError, match=r"shape \(13, 7\), this model's has \(14, 7\)"):
        found.load_into(wider, weights="ema")


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    for name in ("000000000100", "000000000200", "000000000300.tmp"):
        (tmp_path / name).mkdir()
    assert [p.name for p in checkpoint.complete(tmp_path)] == ["000000000100", "000000000200"]
    checkpoint.keep_last(tmp_path, 1)
    assert [p.name for p in checkpoint.complete(tmp_path)] == ["000000000200"]
    checkpoint.remove_partial(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["000000000200"]
