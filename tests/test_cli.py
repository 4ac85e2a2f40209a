"""The command as a user meets it: in a process of its own."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import attvae
from attvae.config import load
from attvae.data.manifest import Manifest
from attvae.engine.batch import BatchPlan
from attvae.engine.deepspeed_config import deepspeed_config
from attvae.model.vae import DeepVAE
from attvae.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
TINY = ROOT / "configs" / "test" / "tiny.yaml"
COMMAND = [str(Path(sys.executable).with_name("attvae"))]
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run(command: list[str], cwd: Path, timeout_s: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    ours = {key: value for key, value in os.environ.items() if key not in LAUNCHERS}
    ours |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "COLUMNS": "200"}
    return subprocess.run(
        command, cwd=cwd, env=ours | environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below `folder` and every folder; the lock says who asked last."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.name != "lock"
    }


def assert_bad_input(result: subprocess.CompletedProcess[str], *named: str) -> None:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    said = [line for line in result.stderr.splitlines() if line.startswith("attvae: ")]
    assert len(said) == 1, result.stderr
    for words in named:
        assert words in result.stderr


# ---------------------------------------------------------------------------------------------------------------- quick


def test_help_within_a_second(tmp_path: Path) -> None:
    def seconds() -> float:
        start = time.perf_counter()
        result = run([*COMMAND, "--help"], tmp_path)
        assert result.returncode == 0
        assert "train" in result.stdout
        assert "evaluate" in result.stdout
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 1


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        (["--version"], {"torch", "deepspeed", "ray", "mlflow", "triton", "apex"}),
        (["train", str(TINY), "--print-config"], {"deepspeed", "ray", "mlflow"}),
    ],
)
def test_heavy_imports_wait_until_they_are_needed(tmp_path: Path, arguments: list[str], absent: set[str]) -> None:
    script = f"import sys; from attvae.cli import app; app({arguments}, standalone_mode=False); print(*sys.modules)"
    result = run([sys.executable, "-c", script], tmp_path)
    assert result.returncode == 0, result.stderr
    *said, modules = result.stdout.splitlines()
    assert said
    assert absent.isdisjoint(modules.split())
    assert "attvae.cli" in modules.split()


def test_version(tmp_path: Path) -> None:
    result = run([*COMMAND, "--version"], tmp_path)
    assert result.stdout == f"attvae {attvae.__version__}\n"


def test_the_printed_configuration_is_the_resolved_one(tmp_path: Path) -> None:
    result = run([*COMMAND, "train", str(TINY), "train.lr=3e-4", "--print-config"], tmp_path)
    assert result.returncode == 0, result.stderr
    (tmp_path / "printed.yaml").write_text(result.stdout)
    assert load(tmp_path / "printed.yaml") == load(TINY, ["train.lr=3e-4"])
    assert load(tmp_path / "printed.yaml").train.lr == 3e-4
    comments = [line[2:] for line in result.stdout.splitlines() if line.startswith("# ")]
    assert comments[0] == "What DeepSpeed gets on 1 rank:"
    cfg = load(TINY)
    expected = deepspeed_config(cfg.engine, BatchPlan(cfg.train.global_batch, 1), 1)
    assert json.loads("\n".join(comments[1:])) == expected


def test_fp16_without_a_gpu_is_refused_before_training(tmp_path: Path, digits: Path) -> None:
    arguments = [f"data.path={digits}", "engine.precision=fp16", "engine.stage=2", "--out", "run"]
    result = run([*COMMAND, "train", str(TINY), *arguments], tmp_path)
    assert result.returncode == 2
    assert result.stderr == (
        "attvae: engine.precision=fp16 needs a GPU and there is none: use autocast, bf16 or fp32\n"
    )
    assert not (tmp_path / "run").exists()


def test_the_launch_script_takes_what_the_deepspeed_launcher_adds(tmp_path: Path) -> None:
    arguments = [str(TINY), "seed=5", "--print-config"]
    launched = run([sys.executable, str(ROOT / "launch" / "train.py"), "--local_rank=0", *arguments], tmp_path)
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout == run([*COMMAND, "train", *arguments], tmp_path).stdout


# ------------------------------------------------------------------------------------------------------------- dry run


def test_a_dry_run_shows_the_plan_and_creates_nothing(tmp_path: Path, digits: Path) -> None:
    result = run([*COMMAND, "train", str(TINY), f"data.path={digits}", "--dry-run"], tmp_path)
    assert result.returncode == 0, result.stderr
    model = DeepVAE(load(TINY).model, Manifest.read(digits).spec)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters > 1000
    assert f" {parameters:,} " in result.stdout
    assert " 20 (1.4 epochs) " in result.stdout  # 2,000 samples in batches of 100, of 1,400 digits
    assert contents(tmp_path) == {}


# ----------------------------------------------------------------------------------------------------------- bad input


def test_an_unknown_key(tmp_path: Path) -> None:
    result = run([*COMMAND, "train", str(TINY), "train.lrr=1"], tmp_path)
    assert_bad_input(result, "unknown key train.lrr: did you mean train.lr?")
    assert contents(tmp_path) == {}


def test_ranks_without_a_launcher(tmp_path: Path, digits: Path) -> None:
    command = [*COMMAND, "train", str(TINY), f"data.path={digits}"]
    result = run(command, tmp_path, RANK="0", WORLD_SIZE="2")
    assert_bad_input(result, "WORLD_SIZE=2", "no MASTER_ADDR and no MASTER_PORT", "launcher")
    assert contents(tmp_path) == {}


def test_a_missing_configuration(tmp_path: Path) -> None:
    result = run([*COMMAND, "train", "nowhere.yaml"], tmp_path)
    assert_bad_input(result, "nowhere.yaml: No such file or directory")


def test_a_missing_data_folder(tmp_path: Path) -> None:
    result = run([*COMMAND, "train", str(TINY), "data.path=nowhere"], tmp_path)
    assert_bad_input(result, "data folder nowhere does not exist", "python -m data_prep")
    assert contents(tmp_path) == {}


def test_a_batch_that_the_ranks_do_not_divide(tmp_path: Path, digits: Path) -> None:
    command = [*COMMAND, "train", str(TINY), f"data.path={digits}", "--dry-run"]
    result = run(command, tmp_path, RANK="0", WORLD_SIZE="3")
    assert_bad_input(result, "train.global_batch=100 is not divisible by 3 ranks", "such as 99")
    assert contents(tmp_path) == {}


def test_the_run_folder_of_another_configuration(tmp_path: Path, digits: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.images.mkdir(parents=True)
    folder.checkpoints.mkdir()
    (folder.path / "lock").touch()
    folder.describe(load(TINY).to_yaml(), {})
    before = contents(tmp_path)
    result = run([*COMMAND, "train", str(TINY), f"data.path={digits}", "seed=1", "--out", str(folder.path)], tmp_path)
    assert_bad_input(result, f"{folder.path} holds a run of another configuration", "seed: 0 there, 1 here", "--out")
    assert contents(tmp_path) == before


def test_evaluating_what_is_no_run(tmp_path: Path) -> None:
    result = run([*COMMAND, "evaluate", "nowhere"], tmp_path)
    assert_bad_input(result, "nowhere is ", " run folder")
    assert contents(tmp_path) == {}
