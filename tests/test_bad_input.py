"""Bad input, as a user meets it: one clear message before training starts, every rank ends, nothing is half-written."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from launched import PLAIN, command, deepspeed_command, run, start_ranks
from typer.testing import CliRunner

from attvae.cli import app
from data_prep.digits import dataset
from data_prep.writer import prepare

TINY = "configs/test/tiny.yaml"


def assert_one_message(output: str, *words: str) -> None:
    said = [line for line in output.splitlines() if line.startswith("attvae")]
    assert len(said) == 1, output
    for each in words:
        assert each in said[0]
    assert "Traceback" not in output


def assert_nothing_begun(out: Path) -> None:
    """At most the empty folders of a run: one that is put right may go there."""
    assert {path.relative_to(out).as_posix() for path in out.rglob("*")} <= {"lock", "images", "checkpoints"}


# ------------------------------------------------------------------------------ known from configuration and machine


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("engine.precision=fp16 engine.stage=2", ["engine.precision=fp16 needs a GPU"]),
        ("engine.depth_attention=triton", ["engine.depth_attention=triton needs a GPU", "auto or torch"]),
        ("engine.compile=true", ["engine.compile needs a GPU"]),
        ("engine.device=tpu", ["engine.device='tpu'", "'auto', 'cuda' or 'cpu'"]),
        ("engine.micro_batch=3", ["train.global_batch=100", "engine.micro_batch=3", "that divides 100"]),
        ("engine.stage=0 engine.offload_optimizer=true", ["engine.offload_optimizer", "but engine.stage=0"]),
        ("engine.stage=2 engine.offload_parameters=true", ["engine.offload_parameters", "but engine.stage=2"]),
        ("engine.stage=1 engine.precision=bf16", ["engine.precision=bf16", "stages 2 and 3", "engine.stage=1"]),
        ("engine.name=plain engine.precision=bf16", ["engine.precision=bf16", "engine.name=zero"]),
        ("engine.name=plain engine.offload_optimizer=true", ["engine.offload_optimizer", "engine.name=plain"]),
        ("data.dataset=mnist", ["holds the data set 'digits", "data.dataset='mnist'"]),
        ("data.spec={height: 9, width: 8, channels: 1, num_bits: 5, max_value: 16}", ["height=8", "height=9"]),
    ],
)
def test_before_anything_starts(
    overrides: str, words: list[str], digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    given = [overrides] if "{" in overrides else overrides.split()
    out = tmp_path / "run"
    result = CliRunner().invoke(app, ["train", TINY, f"data.path={digits}", *given, "--out", str(out)])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("attvae: ")
    for each in words:
        assert each in result.stderr
    assert not out.exists()


# ------------------------------------------------------------------------------------------------------ on real ranks


@pytest.fixture(scope="module")
def checkpoint(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model with other latents, after one update."""
    out = tmp_path_factory.mktemp("other") / "run"
    run(
        command(
            digits,
            out,
            PLAIN,
            "model.latent_channels=3",
            "train.samples=100",
            "train.log_every=100",
            "checkpoint.every=100",
        )
    )
    return out / "checkpoints" / "000000000100"


def refused(digits: Path, out: Path, *overrides: str) -> str:
    """What two ranks say, without a launcher that would end them."""
    ranks = start_ranks(command(digits, out, *overrides), 2)
    said = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2], said
    return "".join(said)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["resume", "init_from"])
def test_a_checkpoint_of_another_model(digits: Path, checkpoint: Path, tmp_path: Path, key: str) -> None:
    out = tmp_path / "run"
    assert_one_message(refused(digits, out, f"{key}={checkpoint}"), f"{checkpoint}", "another model's checkpoint")
    assert_nothing_begun(out)


@pytest.mark.slow
def test_a_checkpoint_of_other_data_ends_each_rank(checkpoint: Path, tmp_path: Path) -> None:
    original, out = dataset(), tmp_path / "run"
    prepare(replace(original, splits={**original.splits, "train": original.splits["val"]}), tmp_path / "data")
    output = refused(tmp_path / "data", out, "model.latent_channels=3", f"resume={checkpoint}")
    assert_one_message(output, f"{checkpoint} was trained on data with fingerprint")
    assert_nothing_begun(out)


@pytest.mark.slow
def test_a_gpu_where_there_is_none(digits: Path, tmp_path: Path) -> None:
    """As with a broken driver: DeepSpeed itself would go on, on the CPU."""
    out = tmp_path / "run"
    launch = deepspeed_command(digits, out, "engine.device=cuda")
    undecided = ["env", "--unset=DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES=", *launch]
    assert_one_message(run(undecided, expected=2), "engine.device=cuda, but there is no GPU on ")
    assert not out.exists()


@pytest.mark.slow
def test_a_gpu_that_the_environment_excludes(digits: Path, tmp_path: Path) -> None:
    output = refused(digits, tmp_path / "run", "engine.device=cuda")
    assert_one_message(output, "engine.device=cuda, but DS_ACCELERATOR=cpu in the environment")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_micro_batch_that_does_not_divide(digits: Path, tmp_path: Path) -> None:
    output = refused(digits, tmp_path / "run", "engine.micro_batch=20")
    assert_one_message(output, "train.global_batch=100 is not a multiple of engine.micro_batch=20 times 2 ranks")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A small one, mounted as asked."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", folder]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("disk", ["size=8m,ro"], indirect=True)
def test_a_disk_that_cannot_be_written(digits: Path, disk: Path) -> None:
    output = refused(digits, disk / "run")
    assert_one_message(output, f"cannot write the run folder {disk}/run (Read-only file system)", "--out")


@pytest.mark.slow
@pytest.mark.parametrize("disk", ["size=64k"], indirect=True)
@pytest.mark.parametrize("left", [0, 32 * 1024])
def test_a_disk_without_room_for_a_checkpoint(digits: Path, disk: Path, left: int) -> None:
    """Nothing at all, or enough for the small files of a run."""
    (disk / "full").write_bytes(bytes(64 * 1024 - left))
    output = refused(digits, disk / "run")
    assert_one_message(output, f"the disk of the run folder {disk}/run has 0.0 MB free", "a checkpoint takes", "--out")
    assert not (disk / "run").exists()
