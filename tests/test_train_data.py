"""Runs that meet bad or distant data: damaged shards, tars that nobody should make, a store that goes away."""

import io
import json
import os
import re
import shutil
import struct
import tarfile
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from s3_server import S3Server
from spawn import run_on_ranks
from typer.testing import CliRunner, Result

from attvae import seeding
from attvae import train as train_module
from attvae.checkpoint import Checkpoint
from attvae.cli import app
from attvae.config import RunConfig, load
from attvae.data import manifest as manifest_module
from attvae.data.loader import train_batches
from attvae.data.manifest import Format, Manifest, fingerprint, xxh3
from attvae.data.plan import Plan
from attvae.engine import rendezvous
from attvae.model.vae import DeepVAE
from attvae.seeding import Purpose
from attvae.tracking.jsonl import read
from data_prep.digits import Digits, dataset
from data_prep.writer import prepare

TINY = "configs/test/tiny.yaml"
EPOCH, SAMPLES, BATCH, SHARD, WINDOW = 700, 1400, 100, 25, 100

# The damage: a shard that is cut within its 11th sample, a flipped bit, a shard that is missing; one in the test split.
CUT, FLIPPED, MISSING = 85, 180, 275
LOST = {*range(CUT, 100), FLIPPED, *range(MISSING, MISSING + SHARD)}
LOST_IN_TEST = SHARD


def visits() -> np.ndarray:
    """Which of the positions of the stream meet a damaged sample."""
    _, ids = Plan([SHARD] * (EPOCH // SHARD), WINDOW, 0).order(np.arange(SAMPLES))
    return np.isin(ids, list(LOST))


def first_unequal_step() -> int:
    """The samples seen after the first step in which two ranks have unequal numbers of sound images, and some."""
    lost = visits().reshape(-1, 2, BATCH // 2).sum(2)
    return BATCH * (1 + int(np.flatnonzero((lost[:, 0] != lost[:, 1]) & (lost.max(1) < BATCH // 2))[0]))


# ---------------------------------------------------------------------------------------------------- damage on 2 ranks


def at_sample(folder: Path, split: str, sample: int) -> tuple[Path, int]:
    """The shard of a sample, and where the content of its image begins."""
    path = folder / f"{split}-{sample // SHARD:06d}.tar"
    return path, path.read_bytes().index(f"{sample:09d}.".encode()) + tarfile.BLOCKSIZE


def flip(folder: Path) -> None:
    """Changes a bit of a training image's file, in place."""
    path, offset = at_sample(folder, "train", FLIPPED)
    with path.open("r+b") as file:
        file.seek(offset + 50)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def damage(folder: Path) -> None:
    path, offset = at_sample(folder, "train", CUT)
    os.truncate(path, offset + 30)
    flip(folder)
    at_sample(folder, "train", MISSING)[0].unlink()
    at_sample(folder, "test", SHARD)[0].unlink()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`raw` and `png`, sound; `damaged-raw` and `damaged-png`; `flipped`, whose sizes are right."""
    folder = tmp_path_factory.mktemp("data")
    formats: tuple[Format, ...] = ("raw", "png")
    for format in formats:
        splits = {**dataset().splits, "train": Digits(range(EPOCH))}
        prepare(replace(dataset(), format=format, splits=splits, shard_samples=SHARD), folder / format)
        shutil.copytree(folder / format, folder / f"damaged-{format}")
        damage(folder / f"damaged-{format}")
    shutil.copytree(folder / "raw", folder / "flipped")
    flip(folder / "flipped")
    return folder


def overrides(path: Path | str, *more: str) -> list[str]:
    """Of short runs that log each step and look at the images once, at the end."""
    rarely = ("eval.every=1000000", "checkpoint.every=1000000", "evaluate.binarisations=1", "tracking.mlflow=false")
    steps = (f"train.samples={SAMPLES}", f"train.global_batch={BATCH}", f"train.log_every={BATCH}")
    return [f"data.path={path}", f"data.window={WINDOW}", *steps, *rarely, *more]


def configuration(path: Path | str, *more: str) -> RunConfig:
    return load(Path(TINY), overrides(path, *more))


def result(out: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """The summary, and the journal's rows of training steps, without what depends on the clock."""
    summary = json.loads((out / "summary.json").read_text())
    del summary["wall_s"]
    rows = [row for row in read(out / "metrics.jsonl") if "train/lr" in row]
    return summary, [
        {k: v for k, v in row.items() if k != "time" and not k.startswith(("perf/", "system/"))} for row in rows
    ]


class Case(NamedTuple):
    name: str
    data: str
    more: tuple[str, ...]


SKIP = ("data.on_damage=skip", "data.skip_limit=0.06")
STILL = ("train.lr=1.0e-30", "train.kl_warmup=0", "train.clip_norm=null")
"""The weights stay as they are, so that a step's loss depends on its images alone."""
GRADIENT = (*SKIP, *STILL, "optim.beta1=0", f"train.samples={first_unequal_step()}")
"""Adamax' first moment is the gradient of the last step."""
LEARN = (*SKIP, f"train.samples={first_unequal_step() + 2 * BATCH}")

CASES = [
    Case("raise", "damaged-raw", ()),
    Case("raise-late", "flipped", ()),
    Case("limit", "damaged-raw", ("data.on_damage=skip", "data.skip_limit=0.05")),
    Case("sound", "raw", STILL),
    Case("skip-raw", "damaged-raw", (*SKIP, *STILL)),
    Case("skip-png", "damaged-png", (*SKIP, *STILL)),
    Case("gradient", "damaged-raw", GRADIENT),
    Case("learn", "damaged-raw", LEARN),
]


class Ended(NamedTuple):
    """How a run ended on a rank."""

    error: str
    seconds: float


def run_cases(folder: str, out: str) -> list[Ended]:
    """All in one process group: runs that fail must leave it in order."""
    manifest_module.HASHED_BYTES = 0  # as if the data were too large to hash them before the start
    world = rendezvous.join()
    train_module.meet = lambda *_: world
    train_module.connect = lambda *_: None
    train_module.leave = lambda: None
    ended = []
    for case in CASES:
        started, error = time.monotonic(), ""
        try:
            train_module.train(configuration(Path(folder) / case.data, *case.more), Path(out) / case.name)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        ended.append(Ended(error, time.monotonic() - started))
    rendezvous.leave()
    return ended


class TwoRanks(NamedTuple):
    """What became of the cases: the parent of the run folders, and how each rank ended, by the case's name."""

    out: Path
    ended: dict[str, tuple[Ended, ...]]


@pytest.fixture(scope="module")
def two_ranks(data: Path, tmp_path_factory: pytest.TempPathFactory) -> TwoRanks:
    out = tmp_path_factory.mktemp("two-ranks")
    ranks = run_on_ranks(run_cases, 2, str(data), str(out))
    return TwoRanks(out, {case.name: ended for case, *ended in zip(CASES, *ranks, strict=True)})


@pytest.mark.parametrize("format", ["raw", "png"])
def test_a_run_that_skips_ends_with_the_right_counts(two_ranks: TwoRanks, format: str) -> None:
    assert [rank.error for rank in two_ranks.ended[f"skip-{format}"]] == ["", ""]
    summary, steps = result(two_ranks.out / f"skip-{format}")
    sound_summary, sound_steps = result(two_ranks.out / "sound")
    lost = visits().reshape(-1, BATCH).sum(1)
    assert lost.sum() == 2 * len(LOST), "the run has two epochs"
    assert [step["data/skipped"] for step in steps] == lost.cumsum().tolist()
    equal = [a["train/nelbo_nats"] == b["train/nelbo_nats"] for a, b in zip(steps, sound_steps, strict=True)]
    assert equal == (lost == 0).tolist()
    assert True in equal
    assert summary["samples_seen"] == SAMPLES
    assert (summary["test"]["images"], sound_summary["test"]["images"]) == (297 - LOST_IN_TEST, 297)
    assert summary["val"] == sound_summary["val"]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("raise", r"ValueError: shard \S+/train-000003.tar has \d+ bytes, the manifest says \d+: prepare it"),
        (
            "raise-late",
            r"DamagedError: shard \S+/train-000007.tar, sample 000000180: .npy is not what was written \(XXH3\)$",
        ),
        ("limit", r"ValueError: \d+ damaged samples were skipped, more than data.skip_limit=0.05 of an epoch of 700: "),
    ],
)
def test_all_ranks_stop_within_seconds_and_one_says_why(two_ranks: TwoRanks, case: str, said: str) -> None:
    ranks = two_ranks.ended[case]
    [speaking] = [rank for rank in ranks if re.match(said, rank.error)]
    [silent] = [rank for rank in ranks if re.match(r"FailedOnAnotherRankError: rank [01] says why", rank.error)]
    assert abs(silent.seconds - speaking.seconds) < 2


def test_the_limit_names_all_that_is_damaged(two_ranks: TwoRanks) -> None:
    """Whichever rank met it."""
    said = max(rank.error for rank in two_ranks.ended["limit"])
    skipped = visits().reshape(-1, BATCH).sum(1).cumsum()
    assert said.startswith(f"ValueError: {skipped[skipped > 0.05 * EPOCH][0]} damaged samples")
    for shard in (CUT // SHARD, MISSING // SHARD):
        assert f"train-{shard:06d}.tar " in said


def initial_model(cfg: RunConfig, manifest: Manifest) -> DeepVAE:
    torch.manual_seed(seeding.torch_seed(cfg.seed, Purpose.MODULE))
    return DeepVAE(cfg.model, manifest.spec)


def test_the_gradient_is_that_of_the_mean_over_the_sound_images(two_ranks: TwoRanks, data: Path) -> None:
    """Two ranks with unequal numbers of them, against autograd on nothing but these images."""
    samples_seen = first_unequal_step()
    lost = visits()[samples_seen - BATCH : samples_seen]
    assert lost[:50].sum() != lost[50:].sum()
    cfg = configuration(data / "raw", *GRADIENT)
    manifest = Manifest.read(data / "raw")
    model = initial_model(cfg, manifest)
    batch = next(train_batches(manifest, cfg.data, cfg.seed, samples_seen - BATCH, BATCH, 0, 1))
    sound = torch.from_numpy(~lost)
    places = [(p, 0) for p in batch.positions[sound].tolist()]
    elbo = model(batch.x[sound], seeding.latent_noise(cfg.seed, Purpose.LATENT, places, model.latent_shapes))
    (elbo.nll_nats + elbo.kl_nats.sum(0)).mean().backward()
    saved = Checkpoint(two_ranks.out / "gradient" / "checkpoints" / f"{samples_seen:012d}")
    for name, p in model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(saved.tensor("exp_avg", name), p.grad, rtol=1e-4, atol=1e-5)
    assert saved.state["skipped"] == visits()[:samples_seen].sum()


def test_two_ranks_learn_what_one_process_learns(two_ranks: TwoRanks, data: Path, tmp_path: Path) -> None:
    """Over unequal numbers of sound images; and evaluate an odd number of images each once."""
    cfg = configuration(data / "damaged-raw", "engine.name=plain", *LEARN)
    train_module.train(cfg, tmp_path / "one")
    (one, steps), (two, steps_of_two) = result(tmp_path / "one"), result(two_ranks.out / "learn")
    assert [rank.error for rank in two_ranks.ended["learn"]] == ["", ""]
    assert [step["data/skipped"] for step in steps] == [step["data/skipped"] for step in steps_of_two]
    for a, b in zip(steps, steps_of_two, strict=True):
        assert a == pytest.approx(b, rel=1e-6)
    a, b = (
        Checkpoint(out / "checkpoints" / f"{cfg.train.samples:012d}")
        for out in (tmp_path / "one", two_ranks.out / "learn")
    )
    model = initial_model(cfg, Manifest.read(data / "raw"))
    moved = []
    for name, start in model.named_parameters():
        weights = a.tensor("parameters", name)
        torch.testing.assert_close(weights, b.tensor("parameters", name), rtol=0, atol=1e-6)
        moved.append(float((weights - start).detach().abs().max()))
    assert max(moved) > 1e-3
    assert one["test"]["images"] == two["test"]["images"] == 297 - LOST_IN_TEST
    assert one["test"]["nelbo_nats"] == pytest.approx(two["test"]["nelbo_nats"], rel=1e-6)


# -------------------------------------------------------------------------------------- tars that nobody should make


def run_command(path: Path | str, out: Path, *more: str) -> Result:
    """`attvae train` in this process."""
    return CliRunner().invoke(
        app, ["train", TINY, *overrides(path, "engine.name=plain", *more), "--out", str(out)], catch_exceptions=False
    )


def assert_said(found: Result, exit_code: int, message: str) -> None:
    assert found.exit_code == exit_code, found.output
    assert sum(bool(re.match(message, line)) for line in found.stderr.splitlines()) == 1, found.stderr
    assert "Traceback" not in found.output


def with_first_shard(sound: Path, folder: Path, content: bytes) -> Path:
    """The data set with another first training shard, and a manifest that knows it."""
    shutil.copytree(sound, folder)
    manifest = Manifest.read(folder)
    first, *others = manifest.splits["train"]
    path = folder / first.file
    path.write_bytes(content)
    first = first.model_copy(update={"bytes": len(content), "xxh3": xxh3(path)})
    splits = {**manifest.splits, "train": (first, *others)}
    changed = manifest.model_copy(update={"splits": splits, "fingerprint": fingerprint(manifest.spec, splits)})
    (folder / "manifest.json").write_text(changed.model_dump_json())
    return folder


def tar_with(sound: Path, name: str, kind: bytes, content: bytes | None = None) -> bytes:
    """The members of a tar, the third of them under another name, as another kind, or with another content."""
    target = io.BytesIO()
    with tarfile.open(sound) as old, tarfile.open(fileobj=target, mode="w") as new:
        for number, member in enumerate(old):
            data = old.extractfile(member)
            assert data is not None
            kept = data.read()
            if number == 2:
                member.name, member.type, member.linkname = name or member.name, kind, "/etc/passwd"
                member.gname, kept = "", kept if content is None else content
                member.size = len(kept) if kind == tarfile.REGTYPE else 0
            new.addfile(member, io.BytesIO(kept) if member.isreg() else None)
    return target.getvalue()


@pytest.mark.parametrize(
    ("name", "kind", "fault"),
    [
        ("/tmp/000000001.npy", tarfile.REGTYPE, "member '/tmp/000000001.npy' points out of the tar"),
        ("../000000001.npy", tarfile.REGTYPE, "member '../000000001.npy' points out of the tar"),
        ("", tarfile.SYMTYPE, "member '000000001.npy' is not a plain file"),
        ("", tarfile.LNKTYPE, "member '000000001.npy' is not a plain file"),
        ("", tarfile.CHRTYPE, "member '000000001.npy' is not a plain file"),
    ],
    ids=["absolute", "parent", "symbolic link", "hard link", "device"],
)
def test_a_refused_tar_ends_the_run(data: Path, tmp_path: Path, name: str, kind: bytes, fault: str) -> None:
    content = tar_with(data / "raw" / "train-000000.tar", name, kind)
    folder = with_first_shard(data / "raw", tmp_path / "data", content)
    found = run_command(folder, tmp_path / "run")
    assert_said(found, 2, rf"attvae: shard {folder}/train-000000.tar is refused: {fault}")


def test_an_image_of_enormous_size_ends_the_run(data: Path, tmp_path: Path) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(50_001) * 2)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    content = tar_with(data / "png" / "train-000000.tar", "", tarfile.REGTYPE, png)
    folder = with_first_shard(data / "png", tmp_path / "data", content)
    found = run_command(folder, tmp_path / "run")
    sample = f"shard {folder}/train-000000.tar, sample 000000001"
    assert_said(found, 2, rf"attvae: {sample}: (50000×50000 pixels, )?allowed are at most 128,?000,?000")


# ---------------------------------------------------------------------------------------------- a store that goes away


@pytest.fixture
def server(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with S3Server(data, tmp_path / "requests.log") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


SMALL_CACHE = "data.cache_gb=0.0007"
"""12 of 28 shards."""


def rows_in(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def test_a_store_that_stays_away_ends_the_run(server: S3Server, tmp_path: Path) -> None:
    far = (server.url("raw"), tmp_path / "run", SMALL_CACHE, f"data.cache={tmp_path}/cache", "data.retry_s=0.5")

    def interrupt() -> None:
        while not rows_in(tmp_path / "run" / "metrics.jsonl"):
            time.sleep(0.02)
        server.stop()

    outage = threading.Thread(target=interrupt, daemon=True)
    outage.start()
    found = run_command(*far)
    outage.join()
    silent = rf"attvae: {server.url('raw')}/train-\d+.tar has not answered for 0.5 s \(.+\): run the same command again"
    assert found.exit_code == 1, found.output
    assert re.match(silent, found.stderr.splitlines()[-1])
    assert "Traceback" not in found.output
    again = run_command(*far)
    assert again.exit_code == 1
    assert re.match(silent.replace(r"train-\d+.tar", "manifest.json"), again.stderr.splitlines()[-1])
