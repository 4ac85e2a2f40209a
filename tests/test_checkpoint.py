"""Checkpoints: what is saved by any engine is loaded by any other; what is damaged is refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from spawn import run_on_ranks
from torch import nn

from attvae import checkpoint
from attvae.checkpoint import Checkpoint, CheckpointWriter
from attvae.checkpoint_config import CheckpointConfig
from attvae.engine import rendezvous
from attvae.engine.batch import divide
from attvae.engine.config import EngineConfig
from attvae.engine.plain import PlainEngine
from attvae.engine.protocol import Engine
from attvae.engine.zero import ZeroEngine
from attvae.model.batch_norm import BatchNorm
from attvae.optim.adamax import Adamax
from attvae.optim.config import OptimConfig
from attvae.tensor_file import hash_file

BATCH, STEPS, SAVED_AT = 12, 8, 5

Options = dict[str, Any]
"""Of the engine, beside fp32 and no parameter kept whole."""

SAVED_BY: dict[str, Options] = {
    "stage 2": {"stage": 2},
    "stage 3": {"stage": 3},
    "bf16": {"stage": 2, "precision": "bf16"},
}


class Run(NamedTuple):
    folder: Path
    options: Options
    first: int
    save_at: int | None


def regression() -> nn.Module:
    """Odd sizes, so that no number of ranks divides them, and a buffer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 13), BatchNorm(13), nn.SiLU(), nn.Linear(13, 5))


def engine_for(world: rendezvous.World, module: nn.Module, options: Options, start: Checkpoint | None) -> Engine:
    cfg = EngineConfig.model_validate({"precision": "fp32", "persistent_parameters": 0} | options)
    optimizer = Adamax(module.parameters(), OptimConfig())
    restored: dict[str, Any] = {"restored": start.tensor, "updates": start.state["updates"]} if start else {}
    if cfg.name == "plain":
        return PlainEngine(module, optimizer, world, cfg, clip_norm=1.0, **restored)
    return ZeroEngine(module, optimizer, world, cfg, batch=divide(BATCH, world.size, None), clip_norm=1.0, **restored)


def on_rank(runs: list[Run]) -> list[list[float]]:
    world = rendezvous.join()
    try:
        return [train(world, run) for run in runs]
    finally:
        rendezvous.leave()


def train(world: rendezvous.World, run: Run) -> list[float]:
    """The losses of the run's steps, from the checkpoint of the first step if there is one."""
    module = regression().eval()  # moving statistics as they are: batch statistics depend on the ranks
    path = run.folder / f"{run.first:012d}"
    start = Checkpoint(path) if path.exists() else None
    if start:
        for p in module.parameters():
            nn.init.constant_(p, 7.0)
        start.check_fits(module)
    engine = engine_for(world, module, run.options, start)
    losses = []
    for step in range(run.first, STEPS):
        x = torch.randn(BATCH, 7, generator=torch.Generator().manual_seed(step))[world.rank :: world.size]

        def loss(forward: nn.Module, x: torch.Tensor = x) -> torch.Tensor:
            return (forward(x.to(next(module.parameters()).dtype)).float() - x[:, :5]).square().mean()

        with torch.no_grad():
            losses.append(float(world.sum(loss(module))) / world.size)
        engine.train_step([loss], 1e-2)
        if step + 1 == run.save_at:
            writer = CheckpointWriter(run.folder, world, CheckpointConfig(every=1), step=1)
            writer.save(engine, run.save_at, {"samples_seen": 0, "updates": engine.updates})
    return losses


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """Checkpoints in mid-run, saved by ZeRO on two ranks, in a folder for each kind; the losses of stage 2."""
    folder = tmp_path_factory.mktemp("checkpoints")
    runs = [Run(folder / name, options, 0, SAVED_AT) for name, options in SAVED_BY.items()]
    for run in runs:
        run.folder.mkdir()
    stage_2, stage_3, bf16 = run_on_ranks(on_rank, 2, runs)[0]
    assert stage_3 == pytest.approx(stage_2, rel=1e-6)
    assert bf16 == pytest.approx(stage_2, rel=0.05)
    assert bf16 != pytest.approx(stage_2, rel=1e-4)
    (folder / "bf16" / "losses.json").write_text(json.dumps(bf16))
    return folder, stage_2


@pytest.fixture
def copied(saved: tuple[Path, list[float]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved[0] / "stage 2" / f"{SAVED_AT:012d}", tmp_path / "copy"))


@pytest.mark.parametrize("ranks", [1, 2])
def test_any_engine_goes_on_from_it(saved: tuple[Path, list[float]], ranks: int) -> None:
    """From what stages 2 and 3 have saved on two ranks; 16-bit parameters go on with their fp32 masters."""
    folder, undisturbed = saved
    cases: list[tuple[str, Options]] = [("stage 2", {"stage": 3}), ("stage 3", {"name": "plain"})]
    if ranks == 1:
        cases += [("stage 2", {"stage": stage}) for stage in (0, 1, 2)]
        cases += [("stage 3", {"stage": 3, "offload_optimizer": True, "offload_parameters": True})]
    else:
        cases += [("stage 3", {"stage": 1, "offload_optimizer": True})]
        cases += [("bf16", {"stage": 2, "precision": "bf16"}), ("bf16", {"stage": 3, "precision": "bf16"})]
    answers = run_on_ranks(on_rank, ranks, [Run(folder / name, options, SAVED_AT, None) for name, options in cases])[0]
    in_bf16 = json.loads((folder / "bf16" / "losses.json").read_text())
    for (name, _), losses in zip(cases, answers, strict=True):
        assert losses == pytest.approx((in_bf16 if name == "bf16" else undisturbed)[SAVED_AT:], rel=1e-6)


def test_it_is_named_fp32_tensors(saved: tuple[Path, list[float]]) -> None:
    """Plain safetensors reads it; every tensor once over the ranks' files."""
    tensors: dict[str, torch.Tensor] = {}
    files = sorted((saved[0] / "stage 3" / f"{SAVED_AT:012d}").glob("*.safetensors"))
    for file in files:
        part = load_file(file)
        assert part.keys().isdisjoint(tensors)
        tensors |= part
    assert len(files) == 2
    names = [name for name, _ in regression().named_parameters()]
    kinds = ("parameters", "exp_avg", "exp_inf", "ema")
    expected = {f"{kind}/{name}" for kind in kinds for name in names}
    expected |= {f"buffers/{name}" for name, _ in regression().named_buffers()}
    assert tensors.keys() == expected
    assert all(t.dtype == torch.float32 for t in tensors.values())
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


def test_a_changed_state_is_found(copied: Path) -> None:
    state = (copied / "state.json").read_text()
    (copied / "state.json").write_text(state.replace("5", "6"))
    with pytest.raises(ValueError, match=r"state\.json does not match its hash"):
        Checkpoint(copied)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is damaged"),
        ('{"format_version": 1', "is damaged"),
        ("[]", "is damaged"),
        ('{"format_version": 1}', "is damaged"),
        ('{"format_version": 1, "files": {"state.json": {"bytes": 3}}}', "is damaged"),
        ('{"format_version": 1, "files": {}}', r"does not name state\.json"),
        ('{"format_version": 2, "files": {}}', "has checkpoint format 2, this attvae reads 1"),
    ],
)
def test_a_damaged_manifest_is_refused(copied: Path, content: str, said: str) -> None:
    (copied / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        Checkpoint(copied)


def test_what_is_no_tensor_file_is_refused(copied: Path) -> None:
    """Though its hash is right."""
    file = copied / "tensors-0000.safetensors"
    file.write_bytes(b"\xff" * 100)
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["files"][file.name] = hash_file(file)._asdict()
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"tensors-0000\.safetensors cannot be read"):
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
    wider = nn.Sequential(nn.Linear(7, 14), BatchNorm(14), nn.SiLU(), nn.Linear(14, 5))
    wider[0] = nn.Linear(7, 13)
    before = wider[0].weight.clone()
    with pytest.raises(ValueError, match=r"shape \(13,\), this model's has \(14,\)"):
        found.load_into(wider, weights="ema")
    assert torch.equal(wider[0].weight, before), "nothing is filled"


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    for name in ("000000000100", "000000000200", "000000000300.tmp"):
        (tmp_path / name).mkdir()
    assert [p.name for p in checkpoint.complete(tmp_path)] == ["000000000100", "000000000200"]
    checkpoint.remove_partial(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000000100", "000000000200"]
