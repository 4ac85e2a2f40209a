"""The micro-batch that is found is the largest one that runs within a real limit of memory."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from attvae import find_batch as search
from attvae.config import RunConfig, load
from attvae.find_batch import Trial, TrialFailedError, available_bytes, find_batch, largest, show_result
from attvae.spec import DataSpec

ROOT = Path(__file__).parents[1]
PHOTOS = DataSpec(height=32, width=32, channels=3, num_bits=8, max_value=255)
GLOBAL_BATCH = 244
LIMIT = 780_000_000

TWO_STEPS = """
import sys
from pathlib import Path
from attvae.config import load
from attvae.engine import rendezvous
from attvae.engine.batch import BatchPlan
from attvae.rehearsal import Rehearsal
from attvae.spec import DataSpec
spec = DataSpec(height=32, width=32, channels=3, num_bits=8, max_value=255)
cfg = load(Path("configs/photos32.yaml"), ["engine.name=plain"])
run = Rehearsal(cfg, spec, rendezvous.join(), BatchPlan(int(sys.argv[1]), 2))
run.train_step()
run.train_step()
"""


def photos(*overrides: str) -> RunConfig:
    """Without DeepSpeed: it starts quicker."""
    return load(ROOT / "configs/photos32.yaml", [f"train.global_batch={GLOBAL_BATCH}", "engine.name=plain", *overrides])


def runs_within_the_limit(micro_batch: int) -> bool:
    """Whether a process that the shell holds to the limit gets through."""
    command = f'ulimit -d {LIMIT // 1024} && exec "$0" -c "$1" {micro_batch}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, TWO_STEPS],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 or "memory" in done.stderr or "primitive" in done.stderr, done.stderr
    return done.returncode == 0


def test_the_largest_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    shown: list[Trial] = []
    trials = find_batch(photos(), PHOTOS, 2, shown.append, LIMIT)
    assert sorted(shown) == trials
    *_, fitting, unfit = trials
    assert (fitting.micro_batch, fitting.fits) == (61, True)
    assert (unfit.micro_batch, unfit.fits) == (122, False)
    assert runs_within_the_limit(61)
    assert not runs_within_the_limit(122)
    assert 0.2 < fitting.peak_memory_gb < 1.3 * LIMIT / 1e9  # code and files are in it, beyond the limit of data
    assert fitting.images_per_s > 1


@pytest.mark.parametrize("candidates", [[1], [1, 2], [1, 2, 4, 5, 10, 20, 25, 50, 100]])
def test_bisection(candidates: list[int]) -> None:
    for limit in range(candidates[-1] + 2):
        asked: list[int] = []

        def fits(size: int, limit: int = limit, asked: list[int] = asked) -> bool:
            asked.append(size)
            return size <= limit

        fitting = [size for size in candidates if size <= limit]
        assert largest(candidates, fits) == (fitting[-1] if fitting else None)
        assert len(asked) <= len(candidates).bit_length()


def test_an_error_is_not_a_want_of_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'AssertionError: something else' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(search.sys, "executable", str(broken))
    with pytest.raises(TrialFailedError, match=r"micro-batch \d+ ended with 1:\nAssertionError: something else"):
        find_batch(photos(), PHOTOS, 1, lambda trial: None)


def test_a_trial_that_the_system_kills_does_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    killed = tmp_path / "python"
    killed.write_text(f"#!/bin/sh\nkill -{int(signal.SIGKILL)} $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(search.sys, "executable", str(killed))
    trials = find_batch(photos(), PHOTOS, 1, lambda trial: None)
    assert trials
    assert not any(trial.fits for trial in trials)
    assert trials[0].micro_batch == 1


def test_what_does_not_fit_the_data_is_bad_input() -> None:
    gray = PHOTOS.model_copy(update={"channels": 1, "binary": True})
    with pytest.raises(ValueError, match="binary"):
        find_batch(photos("train.global_batch=1"), gray, 1, lambda trial: None)


def test_ranks_that_do_not_divide_the_batch() -> None:
    with pytest.raises(ValueError, match=r"global_batch=244 is not divisible by 3 ranks"):
        find_batch(photos(), PHOTOS, 3, lambda trial: None)


def test_available_memory() -> None:
    """No more than psutil says of the machine; less where a control group is narrower."""
    assert 0 < available_bytes() < 1.1 * psutil.virtual_memory().available


def test_the_last_line_is_one_to_paste(capsys: pytest.CaptureFixture[str]) -> None:
    trials = [Trial(16, True, 1.5, 20.0), Trial(64, True, 3.0, 25.0), Trial(128, False)]
    show_result(trials, load(ROOT / "configs/photos32.yaml", ["train.global_batch=512"]), 4)
    *table, on_several_ranks, last = capsys.readouterr().out.splitlines()
    assert last == "engine.micro_batch=64"
    assert "more room" in on_several_ranks
    assert any("64" in line and "2 x 4" in line and "3.00" in line for line in table)


def test_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    show_result([Trial(1, False)], photos(), 1)
    said = capsys.readouterr()
    assert "engine.micro_batch=" not in said.out
    assert "engine.recompute=[encoder,layers,decoder]" in said.err


def test_the_command(tmp_path: Path, digits: Path) -> None:
    command = [str(Path(sys.executable).with_name("attvae")), "find-batch", str(ROOT / "configs/test/tiny.yaml")]
    command += [f"data.path={digits}", "train.global_batch=2", "engine.name=plain", "--ranks", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].startswith("micro-batch 1: fits, ")
    assert lines[-1] == "engine.micro_batch=1"
