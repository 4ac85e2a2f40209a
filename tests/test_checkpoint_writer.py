"""Writing checkpoints: in the background, kept or removed, and what happens when the disk is full."""

import ctypes
import json
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from spawn import run_on_ranks
from torch import nn

from attvae import checkpoint, tensor_file
from attvae.checkpoint import Checkpoint, CheckpointWriter, NotSavedError
from attvae.checkpoint_config import CheckpointConfig
from attvae.engine import rendezvous
from attvae.engine.config import EngineConfig
from attvae.engine.plain import PlainEngine
from attvae.engine.rendezvous import FailedOnAnotherRankError, World
from attvae.model.batch_norm import BatchNorm
from attvae.optim.adamax import Adamax
from attvae.optim.config import OptimConfig

STEP = 10
ALONE = World(0, 1, torch.device("cpu"))
TOO_SMALL = 2000
"""Bytes: less than the tensors of either of two ranks."""


def small_engine(world: World, width: int = 30) -> PlainEngine:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(7, width), BatchNorm(width), nn.Linear(width, width))
    cfg = EngineConfig(name="plain", precision="fp32")
    return PlainEngine(module, Adamax(module.parameters(), OptimConfig()), world, cfg, clip_norm=None)


def train(engine: PlainEngine, steps: int = 1) -> None:
    for _ in range(steps):
        engine.train_step([lambda forward: forward(torch.randn(8, 7)).square().mean()], 1e-2)


def writer(folder: Path, world: World = ALONE, **options: Any) -> CheckpointWriter:
    return CheckpointWriter(folder, world, CheckpointConfig.model_validate({"every": 100} | options), STEP)


def names(folder: Path) -> list[str]:
    return sorted(str(int(p.name)) if p.name.isdigit() else p.name for p in folder.iterdir())


def tensors(folder: Path) -> bytes:
    return (folder / "tensors-0000.safetensors").read_bytes()


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """No file of this process can grow beyond so many bytes: EFBIG instead."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Gate:
    """Holds back the writing of tensors until it is opened."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self._write = tensor_file.write
        self.open, self.close = self._opened.set, self._opened.clear

    def __call__(self, *args: Any) -> Any:
        self._opened.wait(30)
        return self._write(*args)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr(tensor_file, "write", gate)
    return gate


def test_steps_do_not_change_what_is_written_in_the_background(tmp_path: Path, gate: Gate) -> None:
    engine = small_engine(ALONE)
    train(engine, 2)
    state = {"samples_seen": 200, "sums": [1.0]}
    gate.open()
    writer(tmp_path / "foreground").save(engine, 200, state)
    gate.close()
    background = writer(tmp_path / "background", background=True)
    background.save(engine, 200, state)
    train(engine, 2)
    state["sums"] = []
    background.poll()
    assert names(tmp_path / "background") == ["000000000200.tmp"], "poll does not wait"
    gate.open()
    background.finish()
    for file in (tmp_path / "foreground" / f"{200:012d}").iterdir():
        assert (tmp_path / "background" / f"{200:012d}" / file.name).read_bytes() == file.read_bytes()
    writer(tmp_path / "background").save(engine, 300, state)
    assert tensors(tmp_path / "background" / f"{300:012d}") != tensors(tmp_path / "background" / f"{200:012d}")


def test_polling_completes_what_is_written(tmp_path: Path) -> None:
    background = writer(tmp_path, background=True)
    background.save(small_engine(ALONE), 100, {"samples_seen": 100})
    deadline = time.monotonic() + 30
    while names(tmp_path) != ["100"] and time.monotonic() < deadline:
        background.poll()
    assert Checkpoint(tmp_path / f"{100:012d}").samples_seen == 100


def test_saving_completes_the_one_before(tmp_path: Path) -> None:
    background = writer(tmp_path, background=True)
    for samples in (100, 200):
        background.save(small_engine(ALONE), samples, {})
    assert "100" in names(tmp_path)
    background.finish()
    assert names(tmp_path) == ["100", "200"]


def test_the_newest_are_kept_and_those_at_multiples(tmp_path: Path) -> None:
    """Batches of 10 that no interval divides: one is kept if its update has crossed a multiple of keep_every."""
    saving = writer(tmp_path, keep_last=2, keep_every=300)
    engine = small_engine(ALONE)
    for samples in (105, 205, 305, 350, 405, 505, 605, 705, 805):
        saving.save(engine, samples, {})
    assert names(tmp_path) == ["305", "605", "705", "805"]


def test_what_lies_ahead_of_the_newest_goes(tmp_path: Path) -> None:
    """After a roll-back it belongs to what has been abandoned, even at a multiple of keep_every."""
    saving = writer(tmp_path, keep_last=3, keep_every=300)
    engine = small_engine(ALONE)
    for samples in (100, 200, 300):
        saving.save(engine, samples, {"samples_seen": samples, "roll_backs": 0})
    train(engine)
    saving.save(engine, 200, {"samples_seen": 200, "roll_backs": 1})
    assert names(tmp_path) == ["100", "200"]
    assert Checkpoint(tmp_path / f"{200:012d}").state["roll_backs"] == 1


def killed_while_writing(folder: Path) -> None:
    def write_half(path: Path, tensors: dict[str, Any]) -> None:
        path.write_bytes(b"half a file")
        os.kill(os.getpid(), signal.SIGKILL)

    tensor_file.write = write_half  # type: ignore[assignment]
    writer(folder).save(small_engine(ALONE), 100, {"samples_seen": 100})


def test_what_a_kill_leaves_is_no_checkpoint(tmp_path: Path) -> None:
    process = get_context("spawn").Process(target=killed_while_writing, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert names(tmp_path) == ["000000000100.tmp"]
    assert checkpoint.complete(tmp_path) == []
    with pytest.raises(ValueError, match=r"is no complete checkpoint: manifest\.json is missing"):
        Checkpoint(tmp_path / "000000000100.tmp")
    (tmp_path / "000000000100.tmp" / "tensors-0007.safetensors").write_bytes(b"of a rank that is no longer there")
    writer(tmp_path).save(small_engine(ALONE), 100, {"samples_seen": 100})
    assert names(tmp_path) == ["100"]
    assert names(tmp_path / f"{100:012d}") == ["manifest.json", "state.json", "tensors-0000.safetensors"]


def test_a_disk_that_fills(tmp_path: Path) -> None:
    """A real one, of 64 KiB: two checkpoints fit, the third does not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    try:
        saving = writer(disk, keep_last=3)
        engine = small_engine(ALONE)
        for samples in (100, 200):
            saving.save(engine, samples, {"samples_seen": samples})
        with pytest.raises(
            NotSavedError, match=r"00300 \(No space left on device\): the newest .* is 000000000200; make"
        ):
            saving.save(engine, 300, {})
        assert names(disk) == ["100", "200"]
        assert Checkpoint(disk / f"{200:012d}").samples_seen == 200
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("background", [False, True])
def test_a_failure_that_may_be_ignored(tmp_path: Path, capfd: pytest.CaptureFixture[str], background: bool) -> None:
    saving = writer(tmp_path, on_failure="continue", background=background)
    engine = small_engine(ALONE)
    with file_size_limit(TOO_SMALL):
        saving.save(engine, 100, {})
        saving.finish()
    told = capfd.readouterr().err
    assert told.count("\n") == 1
    assert "00100 (File too large): none stands; the run goes on without this one" in told
    assert names(tmp_path) == []
    saving.save(engine, 200, {})
    saving.finish()
    assert names(tmp_path) == ["200"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotSavedError, match="Not a directory"):
        writer(tmp_path / "file").save(small_engine(ALONE), 100, {})


def test_an_old_one_that_cannot_be_removed_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    saving = writer(tmp_path, keep_last=1)
    saving.save(small_engine(ALONE), 100, {})
    monkeypatch.setattr(checkpoint, "_remove", refuse)
    saving.save(small_engine(ALONE), 200, {})
    assert "00100 (Permission denied)" in capfd.readouterr().err
    assert names(tmp_path) == ["100", "200"]


def on_two_ranks(folder: Path) -> dict[str, Any]:
    """What each of several stories came to on this rank."""
    world = rendezvous.join()
    try:
        engine = small_engine(world)
        train(engine)
        told: dict[str, Any] = {}

        background = writer(folder / "background", world, background=True)
        gate = Gate()
        if world.rank == 1:
            tensor_file.write = gate  # type: ignore[assignment]
        background.save(engine, 100, {"samples_seen": 100})
        time.sleep(0.5)  # rank 0 has written by now
        background.poll()
        world.barrier()
        told["while rank 1 writes"] = names(folder / "background")
        gate.open()
        background.finish()
        told["saved"] = {
            f"{kind}/{name}": tensor.tolist()
            for kind, named in [("parameters", engine.parameters()), ("exp_inf", engine.optimizer_state("exp_inf"))]
            for name, tensor in named
        }

        for story, limits, options, state in [
            ("rank 1's disk is full", {1: TOO_SMALL}, {}, {}),
            ("rank 1's disk is full, in the background", {1: TOO_SMALL}, {"background": True}, {}),
            ("both disks are full", {0: TOO_SMALL, 1: TOO_SMALL}, {}, {}),
            ("rank 1's disk is full, and that is ignored", {1: TOO_SMALL}, {"on_failure": "continue"}, {}),
            ("rank 0 has no room for its state", {0: 50_000}, {}, {"much": "x" * 100_000}),
        ]:
            saving = writer(folder / story, world, **options)
            saving.save(engine, 100, {})
            saving.finish()
            with file_size_limit(limits.get(world.rank, resource.RLIM_INFINITY)):
                try:
                    saving.save(engine, 200, state)
                    saving.finish()
                    told[story] = "went on"
                except (NotSavedError, FailedOnAnotherRankError) as error:
                    told[story] = f"{type(error).__name__}: {error}"
            world.barrier()
            told[story + ": left"] = names(folder / story)
        return told
    finally:
        rendezvous.leave()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("two_ranks")
    return folder, run_on_ranks(on_two_ranks, 2, folder)


def test_a_checkpoint_is_complete_when_all_ranks_have_written(two_ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, told = two_ranks
    assert [rank["while rank 1 writes"] for rank in told] == [["000000000100.tmp"]] * 2
    found = Checkpoint(folder / "background" / f"{100:012d}")
    assert told[0]["saved"] == told[1]["saved"]
    for key, value in told[0]["saved"].items():
        assert found.tensor(*key.split("/")).tolist() == value
    manifest = json.loads((found.folder / "manifest.json").read_text())
    assert list(manifest["files"]) == ["state.json", "tensors-0000.safetensors", "tensors-0001.safetensors"]


def test_the_rank_whose_disk_is_full_says_so(two_ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    _, (rank_0, rank_1) = two_ranks
    for story, says, quiet in [
        ("rank 1's disk is full", rank_1, rank_0),
        ("rank 1's disk is full, in the background", rank_1, rank_0),
        ("both disks are full", rank_0, rank_1),
        ("rank 0 has no room for its state", rank_0, rank_1),
    ]:
        assert says[story].startswith("NotSavedError: cannot save the checkpoint "), story
        assert "000000000200 (File too large): the newest that stands is 000000000100; make room there" in says[story]
        number = 0 if says is rank_0 else 1
        assert quiet[story] == f"FailedOnAnotherRankError: rank {number} says why"
        assert rank_0[story + ": left"] == rank_1[story + ": left"] == ["100"]


def test_all_ranks_go_on_if_asked_to(two_ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    story = "rank 1's disk is full, and that is ignored"
    assert [(rank[story], rank[story + ": left"]) for rank in two_ranks[1]] == [("went on", ["100"])] * 2


def test_saving_and_loading_need_no_copy_of_the_model(tmp_path: Path) -> None:
    """In a process of its own: another's heap may hold pages that count when they are used again."""
    [(saving, loading)] = run_on_ranks(peaks_mb, 1, tmp_path)
    assert saving < 4
    assert loading < 24, "a tensor at a time"


def peaks_mb(folder: Path) -> tuple[float, float]:
    """Of saving and of loading, above what the process had before."""
    M_MMAP_THRESHOLD = -3
    assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)  # what is freed goes back at once, not into a heap
    engine = small_engine(ALONE, width=2000)  # 16 MB a kind, 64 MB in all
    saving = writer(folder)
    saving.save(engine, 100, {})
    engine.restore(Checkpoint(folder / f"{100:012d}").tensor, 0, engine.guard)  # writes to all pages

    def peak_mb(work: Any) -> float:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = memory_mb("VmRSS")
        work()
        return memory_mb("VmHWM") - before

    def load() -> None:
        start = Checkpoint(folder / f"{200:012d}")
        engine.restore(start.tensor, 0, engine.guard)

    return peak_mb(lambda: saving.save(engine, 200, {})), peak_mb(load)


def memory_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(kib) * 1024 / 1e6


def test_one_that_was_being_replaced_comes_back(tmp_path: Path) -> None:
    """Killed between the two renamings, the old one is all there is."""
    replaced, half_written = tmp_path / "000000001000.replaced.tmp", tmp_path / "000000001000.tmp"
    for folder in (replaced, half_written):
        folder.mkdir()
        (folder / "state.json").write_text(folder.name)
    checkpoint.remove_partial(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["000000001000"]
    assert (tmp_path / "000000001000" / "state.json").read_text() == replaced.name


def test_checkpoints_sort_by_samples_seen(tmp_path: Path) -> None:
    assert checkpoint.place(tmp_path, 1400) == tmp_path / "000000001400"
    assert checkpoint.place(tmp_path, 9_999) < checkpoint.place(tmp_path, 10_000) < checkpoint.place(tmp_path, 10**11)
