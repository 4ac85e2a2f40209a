import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from attvae import run_folder
from attvae.config import load
from attvae.run_folder import RunFolder, write_json, write_text

TINY = Path(__file__).parents[1] / "configs" / "test" / "tiny.yaml"
HOLD = """
import os, sys, time
from pathlib import Path
from attvae.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
folder.claim()
child = os.fork() if sys.argv[2] == "forks" else None
if child != 0:
    print(child, flush=True)
time.sleep(60)
os._exit(0)
"""


@contextmanager
def holder(path: Path, forks: bool = False) -> Iterator[tuple[subprocess.Popen[str], int | None]]:
    """Another process that has claimed `path`, and the process id of the child that it forked, if it did."""
    command = [sys.executable, "-c", HOLD, str(path), "forks" if forks else "alone"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    child = None
    try:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        child = int(said) if forks else None
        yield process, child
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        if child is not None:
            os.kill(child, signal.SIGKILL)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "LOCK_WAIT_S", 0.1)


# ------------------------------------------------------------------------------------------------------------ one owner


@pytest.mark.usefixtures("impatient")
def test_a_folder_in_use_is_refused_until_its_owner_is_killed(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as (process, _):
        with pytest.raises(ValueError, match=f"in use by another run .pid {process.pid} on .*--out"):
            RunFolder(tmp_path / "run").claim()
        process.send_signal(signal.SIGKILL)
        process.wait()
        RunFolder(tmp_path / "run").claim()
    assert (tmp_path / "run" / "lock").read_text().startswith(f"pid {os.getpid()} on ")


@pytest.mark.usefixtures("impatient")
def test_a_forked_child_that_outlives_the_owner_does_not_own(tmp_path: Path) -> None:
    with holder(tmp_path / "run", forks=True) as (process, child):
        process.kill()
        process.wait()
        assert child is not None
        os.kill(child, 0)  # it lives, with the owner's open files
        RunFolder(tmp_path / "run").claim()


def test_a_predecessor_that_is_ending_is_waited_for(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as (process, _):
        threading.Timer(0.5, process.kill).start()
        RunFolder(tmp_path / "run").claim()
        assert process.wait() == -signal.SIGKILL


# ------------------------------------------------------------------------------------------------------ which folders


def test_nothing_is_created_before_the_claim(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a" / "run")
    assert not folder.is_finished(load(TINY))
    assert folder.mlflow_run_id() is None
    assert list(tmp_path.iterdir()) == []
    folder.claim()
    assert folder.images.is_dir()
    assert folder.checkpoints.is_dir()


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    RunFolder(tmp_path).claim()
    assert (tmp_path / "lock").is_file()


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"is not empty and no run folder: .*--out"):
        RunFolder(tmp_path).claim()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("below", ["", "run", "a/run"])
def test_a_file_in_the_way_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    path = tmp_path / "file" / below
    with pytest.raises(ValueError, match=f"cannot write the run folder {path} .*--out"):
        RunFolder(path).claim()
    assert (tmp_path / "file").read_text() == "not a folder"


# ------------------------------------------------------------------------------------------------------ what it holds


def test_finished_is_a_summary_of_the_same_configuration(tmp_path: Path) -> None:
    folder, cfg = RunFolder(tmp_path), load(TINY)
    folder.claim()
    folder.describe(cfg.to_yaml(), {})
    assert not folder.is_finished(cfg)
    write_json(folder.summary, {"samples_seen": 2000})
    assert folder.is_finished(cfg)
    assert folder.read_summary() == {"samples_seen": 2000}
    assert folder.is_finished(load(TINY, ["engine.stage=2"]))
    assert not folder.is_finished(load(TINY, ["seed=1"]))


def test_a_damaged_summary_is_named_with_the_remedy(tmp_path: Path) -> None:
    folder, cfg = RunFolder(tmp_path), load(TINY)
    folder.claim()
    folder.describe(cfg.to_yaml(), {})
    folder.summary.write_text('{"samples_seen": 20')
    with pytest.raises(ValueError, match=r"summary.json is damaged .*: remove it, and `attvae train` evaluates"):
        folder.is_finished(cfg)


def test_a_run_describes_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("HF_TOKEN", "Tr0ub4dor")
    folder, cfg = RunFolder(tmp_path), load(TINY)
    folder.claim()
    monkeypatch.setattr(sys, "argv", ["attvae", "train", "a file.yaml"])
    folder.describe(cfg.to_yaml(), {"hosts": ["node-a"]})
    monkeypatch.setattr(sys, "argv", ["attvae", "train", "again.yaml", "data.path=s3://me:pass@bucket", "Tr0ub4dor"])
    folder.describe(cfg.to_yaml(), {"hosts": ["node-b"]})
    assert load(folder.config) == cfg
    commands = ["attvae train 'a file.yaml'", "attvae train again.yaml data.path=s3://***@bucket ***"]
    assert (tmp_path / "command.txt").read_text().splitlines() == commands
    about = json.loads((tmp_path / "environment.json").read_text())
    assert about["world_size"] == 2
    assert about["hosts"] == ["node-b"]
    assert about["python"] == ".".join(map(str, sys.version_info[:3]))
    assert about["packages"]["torch"].startswith("2.")


def test_how_the_code_differs_from_its_commit_is_kept_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, folder = tmp_path / "checkout", RunFolder(tmp_path / "run")
    checkout.mkdir()
    folder.claim()
    git = ["git", "-C", str(checkout), "-c", "user.name=me", "-c", "user.email=me@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    (checkout / "code.py").write_text("one = 1\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "first"], check=True)
    monkeypatch.setattr(run_folder, "__file__", str(checkout / "code.py"))
    folder.describe("", {})
    assert not (folder.path / "git.diff").exists(), "there is no difference"

    (checkout / "code.py").write_text("one = 2\npassword = 'correct horse'\n")
    folder.describe("", {})
    lines = (folder.path / "git.diff").read_text().splitlines()
    assert [line for line in lines if line[:2] in ("-o", "+o", "+p")] == ["-one = 1", "+one = 2", "+password = '***'"]
    monkeypatch.setattr(run_folder, "DIFF_LENGTH", 20)
    folder.describe("", {})
    cut = (folder.path / "git.diff").read_text()
    assert cut.startswith("diff --git a/code.py\n... ")

    (checkout / "code.py").write_text("one = 1\n")
    folder.describe("", {})
    assert not (folder.path / "git.diff").exists(), "that of an earlier start is gone"


def test_the_status_is_recorded_without_secrets(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.record_status("FAILED", "OSError: s3://me:pass@bucket")
    found = json.loads(folder.status.read_text())
    assert (found["status"], found["reason"]) == ("FAILED", "OSError: s3://***@bucket")
    assert found["time"] == pytest.approx(time.time(), abs=5)


def test_a_run_goes_on_in_mlflow_with_the_run_of_its_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.go_on_in_mlflow("abc")
    assert folder.mlflow_run_id() == "abc"
    folder.go_on_in_mlflow("other")
    assert folder.mlflow_run_id() == "abc", "the folder knows better"


# -------------------------------------------------------------------------------------------------------- whole or not


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_text(path, "old")
    seen = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(path.read_text()))
    write_text(path, "new and longer")
    assert seen == ["old"]  # nobody sees the new text before all of it is on the disk
    assert path.read_text() == "new and longer"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "summary.json"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
