"""What the doctor finds: on this machine as it is, on one that is made ill, and between real ranks."""

import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from launched import REPOSITORY, start, start_ranks
from spawn import free_port, run_on_ranks
from typer.testing import CliRunner

from attvae import agreement
from attvae.agreement import check_same_everywhere, check_shared, facts
from attvae.cli import app
from attvae.config import RunConfig, load
from attvae.data.loader import open_manifest
from attvae.doctor import deepspeed_env, machine, ranks
from attvae.engine.rendezvous import FailedOnAnotherRankError, join, leave
from data_prep.digits import dataset
from data_prep.writer import prepare

TINY = REPOSITORY / "configs" / "test" / "tiny.yaml"


def tiny(digits: Path, *overrides: str) -> RunConfig:
    return load(TINY, [f"data.path={digits}", *overrides])


def verdicts(table: str) -> dict[str, str]:
    """The rows of the printed table: check -> verdict."""
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in table.splitlines() if "│" in line]
    return {row[0]: row[1] for row in rows if row[0]}


# ------------------------------------------------------------------------------------------------------------- machine


def test_what_is_installed_is_named() -> None:
    check = machine.versions()
    assert check.verdict == "ok"
    for module in (torch, numpy):
        assert f"{module.__name__} {module.__version__}" in check.found


def test_old_and_missing_packages_come_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["torch>=99", "numpy>=1", "no-such-package>=1.5", "nor-this>=3; extra == 'official'"]
    monkeypatch.setattr(machine, "requires", lambda _: asked)
    check = machine.versions()
    assert check.verdict == "problem"
    assert check.found == (f"torch {torch.__version__}, attvae needs >=99; no-such-package missing, attvae needs >=1.5")
    assert check.remedy == "pip install 'torch>=99' 'no-such-package>=1.5'"


def test_the_unrelated_apex_is_told_from_nvidias(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.apex(None).verdict == "ok"
    fused = tiny(digits, "optim.name=adamw", "optim.fused=apex")
    assert machine.apex(fused).verdict == "problem"
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    try:
        check = machine.apex(None)
    finally:
        sys.modules.pop("apex", None)
    assert (check.verdict, check.remedy.split(";")[0]) == ("warning", "pip uninstall apex")
    assert "unrelated package" in check.found


def test_room_for_the_checkpoints_that_are_to_come(digits: Path, tmp_path: Path) -> None:
    cfg = tiny(digits, "checkpoint.keep_last=2")
    assert machine.disk(tmp_path / "run", 10**6, cfg).verdict == "ok"
    check = machine.disk(tmp_path / "run", 10**15, cfg)
    assert check.verdict == "problem"
    assert check.found.endswith("3 checkpoints of 1,000,000.0 GB are to come")  # two, and the third while it is written
    for samples in (1000, 2000):
        (tmp_path / "run" / "checkpoints" / f"{samples:012d}").mkdir(parents=True)
    assert "1 checkpoints of" in machine.disk(tmp_path / "run", 10**15, cfg).found
    kept = tiny(digits, "checkpoint.keep_every=1000", "train.samples=5000")
    assert "8 checkpoints of" in machine.disk(tmp_path / "other", 10**15, kept).found


def test_room_for_remote_shards(digits: Path, tmp_path: Path) -> None:
    manifest = open_manifest(tiny(digits).data)
    remote = {"data.path": f"file://{digits}", "data.cache": tmp_path / "cache"}
    data = tiny(digits, *(f"{key}={value}" for key, value in remote.items())).data
    assert machine.cache(data, manifest).verdict == "ok"
    shards = {
        split: [shard.model_copy(update={"bytes": 10**15}) for shard in held] for split, held in manifest.splits.items()
    }
    larger = data.model_copy(update={"cache_gb": 1e7})
    check = machine.cache(larger, manifest.model_copy(update={"splits": shards}))
    assert check.verdict == "problem"
    assert "up to 5,000,000.0 GB wanted" in check.found  # of five shards


def test_room_in_shared_memory(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny(digits, "data.workers=4")
    manifest = open_manifest(cfg.data)
    assert machine.shared_memory(cfg.data, manifest, 100).verdict == "ok"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    check = machine.shared_memory(cfg.data, manifest, 10**9)
    assert check.verdict == "problem"
    assert "take up to 6,144.0 GB" in check.found  # 8 ranks x 4 workers x (2 + 1) batches of 10^9 images of 64 bytes
    assert machine.shared_memory(tiny(digits, "data.workers=0").data, manifest, 10**9).verdict == "ok"


def test_a_low_limit_of_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
    try:
        assert machine.open_files(None, None, 2).verdict == "ok"
        check = machine.open_files(None, None, 1024)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert check.verdict == "problem"
    assert check.found.startswith("limit 400, ")
    assert check.remedy.startswith("ulimit -n ")


def test_the_master_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("MASTER_PORT", str(listening.getsockname()[1]))
        check = machine.master_port()
        assert (check.verdict, check.found) == ("problem", f"{listening.getsockname()[1]}: in use")
    assert machine.master_port().verdict == "ok"
    monkeypatch.setenv("MASTER_PORT", "70000")
    with pytest.raises(ValueError, match="MASTER_PORT='70000' is no port"):
        machine.master_port()


def test_the_clock_against_the_file_systems(tmp_path: Path) -> None:
    assert machine.file_clock(tmp_path / "run").verdict == "ok"
    check = machine.file_clock(tmp_path / "run", now=lambda: time.time() + 60)
    assert check.verdict == "warning"
    assert re.search(r"is (59|60)\.\d s behind", check.found)
    assert list(tmp_path.iterdir()) == []


def test_the_rate_of_an_all_reduce() -> None:
    """In a ring of four, each rank sends 2 * 3/4 of the tensor."""
    fast = ranks.judged(0.001, 20e-6, 4, "cuda")
    assert fast.verdict == "ok"
    assert fast.found == "64 MiB in 1.0 ms: 100.66 GB/s out of each rank; a single number in 20 us"
    assert ranks.judged(1.0, 20e-6, 4, "cuda").verdict == "warning"
    assert ranks.judged(1.0, 20e-6, 4, "cpu").verdict == "ok"


# ------------------------------------------------------------------------------------------------------ .deepspeed_env


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """DeepSpeed's own launcher up to the pdsh command: () -> what each host's shell would run before it trains."""
    from deepspeed.launcher import multinode_runner, runner

    commands: list[list[str]] = []

    class Started:
        returncode = 0

        def __init__(self, command: list[str], **_: Any) -> None:
            commands.append(command)

        def wait(self) -> None: ...

    (tmp_path / "hosts").write_text("first slots=1\nsecond slots=1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(runner, "DEEPSPEED_ENVIRONMENT_PATHS", [str(tmp_path / "home"), "."])
    monkeypatch.setattr(multinode_runner.PDSHRunner, "backend_exists", lambda _: True)
    monkeypatch.setattr(runner, "subprocess", SimpleNamespace(Popen=Started))
    monkeypatch.setattr(runner.signal, "signal", lambda *_: None)

    def exports() -> str:
        arguments = ["--hostfile", "hosts", "--no_ssh_check", "--master_addr", "first", "train.py"]
        runner.main(arguments)
        return next(part for part in commands.pop() if part.startswith("export "))

    return exports


def in_shell(exports: str, name: str) -> str:
    """The variable, as the command that follows the exports would find it."""
    run = subprocess.run(["sh", "-c", f"{exports} printenv {name}"], capture_output=True, text=True, check=False)
    return run.stdout.removesuffix("\n")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("A=1\n\nB=2\n", ["line 2: blank, on which the launcher crashes"]),
        ("A=1\n  \n", ["line 2: blank, on which the launcher crashes"]),
        ("# mine\nA=1\n", ["line 1: a comment, which crashes the launcher"]),
        ("A=1\nexport B\n", ["line 2: 'export B' has no '=', on which the launcher crashes"]),
    ],
)
def test_lines_on_which_deepspeeds_launcher_crashes(content: str, said: list[str], launcher: Callable[[], str]) -> None:
    Path(".deepspeed_env").write_text(content)
    with pytest.raises(ValueError, match="not enough values to unpack"):
        launcher()
    check = deepspeed_env.check()
    assert check.verdict == "problem"
    assert check.found.splitlines() == [f"{Path.cwd() / '.deepspeed_env'} {each}" for each in said]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("# A=1", "a comment, which hides the rest of the command"),
        ('B="two words"', 'the value of B has a "'),
        ("B=$HOME/x", "the value of B has a $"),
        ("B=a`b`", "the value of B has a `"),
    ],
)
def test_lines_that_reach_the_hosts_as_something_else(line: str, said: str, launcher: Callable[[], str]) -> None:
    Path(".deepspeed_env").write_text(f"{line}\n")
    name, _, value = line.partition("=")
    assert in_shell(launcher(), name.strip("# ")) != value
    assert f"line 1: {said}" in deepspeed_env.check().found


def test_what_pdsh_replaces(launcher: Callable[[], str]) -> None:
    """The launcher itself has pdsh put the number of each host in place of %n, and hands %h on as it is."""
    Path(".deepspeed_env").write_text("NCCL_DEBUG_FILE=/logs/%h.%p\n")
    assert "/logs/%h.%p" in launcher()
    assert "line 1: the value of NCCL_DEBUG_FILE has a %h, which pdsh" in deepspeed_env.check().found


def test_sound_files_in_both_places(launcher: Callable[[], str], tmp_path: Path) -> None:
    assert deepspeed_env.check().verdict == "ok"
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".deepspeed_env").write_text("NCCL_DEBUG=INFO\n")
    Path(".deepspeed_env").write_text("A=it's two; words\nEMPTY=")
    check = deepspeed_env.check()
    assert check.verdict == "ok"
    assert check.found.endswith(": NCCL_DEBUG, A, EMPTY")
    exports = launcher()
    assert [in_shell(exports, name) for name in ("NCCL_DEBUG", "A")] == ["INFO", "it's two; words"]


def test_what_is_written_reaches_the_hosts_without_secrets(launcher: Callable[[], str]) -> None:
    wanted = {
        "NCCL_IB_HCA": "=mlx5_0:1,mlx5_1:1",
        "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
        "OMP_NUM_THREADS": "8",
        "AWS_ENDPOINT_URL": "https://store.example:9000",
        "TRITON_CACHE_DIR": "/scratch/a user's cache",
        "HTTPS_PROXY": "http://proxy.example:3128",
    }
    secret = {
        "AWS_ACCESS_KEY_ID": "AKIA0",
        "AWS_SECRET_ACCESS_KEY": "hush",
        "AWS_SESSION_TOKEN": "hush",
        "http_proxy": "http://name:hush@proxy.example:3128",
    }
    other = {"HOME": "/home/me", "CUDA_VISIBLE_DEVICES": "0", "RANDOM": "1"}
    written = deepspeed_env.write(wanted | secret | other | {"TORCH_LOGS": "a$b"})
    assert set(written.names) == set(wanted)
    assert set(written.secrets) == set(secret)
    assert written.unquotable == ["TORCH_LOGS"]
    assert "hush" not in Path(".deepspeed_env").read_text()
    assert deepspeed_env.check().verdict == "ok"
    exports = launcher()
    assert {name: in_shell(exports, name) for name in wanted} == wanted
    with pytest.raises(ValueError, match="is there already"):
        deepspeed_env.write(wanted)


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, without a launcher around."""
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def doctor(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["doctor", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_a_machine_that_is_well(alone: Path, digits: Path) -> None:
    code, said, _ = doctor(TINY, f"data.path={digits}", "data.workers=1")
    assert code == 0
    assert set(verdicts(said).values()) - {""} <= {"ok", "warning"}
    assert {"versions", "devices", "apex", "shards", "first batch", "run folder", "master port"} <= verdicts(
        said
    ).keys()
    assert list(alone.iterdir()) == []


def test_without_a_configuration(alone: Path) -> None:
    code, said, _ = doctor()
    assert code == 0
    assert "shards" not in verdicts(said)


def test_damaged_shards_are_a_problem(alone: Path) -> None:
    prepare(dataset(), alone / "digits")
    shard = sorted((alone / "digits").glob("train-*.tar"))[0]
    shard.write_bytes(shard.read_bytes()[:-512])
    code, said, _ = doctor(TINY, "data.path=digits")
    assert code == 1
    assert verdicts(said)["shards"] == "problem"
    assert f"shard digits/{shard.name} has" in said
    code, said, _ = doctor(TINY, "data.path=digits", "data.on_damage=skip")
    assert verdicts(said)["shards"] == "warning"


def test_a_run_that_would_be_refused(alone: Path, digits: Path) -> None:
    code, said, _ = doctor(TINY, f"data.path={digits}", "engine.device=cuda", "engine.micro_batch=3")
    assert code == 1
    assert {name for name, verdict in verdicts(said).items() if verdict == "problem"} == {"devices", "run"}


def test_bad_usage(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, complaint = doctor(TINY, "train.lrr=1")
    assert (code, complaint.count("\n")) == (2, 2)
    assert "did you mean train.lr?" in complaint
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert doctor(TINY)[::2] == (
        2,
        "attvae: a launcher has started 2 ranks (WORLD_SIZE): add --distributed\n",
    )


def test_writing_the_file_says_what_is_in_it(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    code, said, _ = doctor("--write-deepspeed-env")
    assert code == 0
    assert "NCCL_DEBUG=WARN\n" in (alone / ".deepspeed_env").read_text()
    assert "NCCL_DEBUG" in said.splitlines()[0]
    assert "left out, as secrets: AWS_SECRET_ACCESS_KEY" in said
    assert "hush" not in said + (alone / ".deepspeed_env").read_text()
    assert doctor("--write-deepspeed-env")[0] == 2


# -------------------------------------------------------------------------------------------------------- on real ranks


def end(started: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    try:
        said = [process.communicate(timeout=120)[0] for process in started]
        return [process.returncode for process in started], said
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_two_ranks_that_fit_together(digits: Path, tmp_path: Path) -> None:
    command = [sys.executable, "launch/doctor.py", "--local_rank=0", "--distributed"]
    arguments = [str(TINY), f"data.path={digits}", "--out", str(tmp_path / "new" / "run")]
    codes, (first, second) = end(start_ranks([*command, *arguments], 2))
    assert codes == [0, 0], first + second
    assert second == ""
    found = verdicts(first)
    for name in ("ranks", "shared folder", "the same everywhere", "clocks", "all-reduce", "first batch"):
        assert found[name] == "ok", first
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_is_unlike_the_others(digits: Path, tmp_path: Path) -> None:
    command = [sys.executable, "tests/differing_doctor.py", str(TINY), f"data.path={digits}"]
    (tmp_path / "theirs").mkdir()
    unlike = f"train.lr=0.5 data.path=nowhere --out {tmp_path}/theirs/run"
    started = start_ranks([*command, "--out", str(tmp_path / "ours" / "run")], 2, RANK_1=unlike)
    codes, (said, second) = end(started)
    assert codes == [1, 1], said + second
    assert second == ""
    found = verdicts(said)
    problems = {"shared folder", "the same everywhere", "shards"}
    assert {name for name, verdict in found.items() if verdict == "problem"} == problems, said
    assert found["clocks"] == "warning"
    host, words = socket.gethostname(), " ".join(re.sub(r"[│\n]", " ", said).split())
    assert f"rank 1 on {host} has torch 1.2.3, on rank 0 ({host}) {torch.__version__}" in words
    for part in ("train.lr 0.5", "data.path 'nowhere'", f"rank 1 on {host} does not see in", f"rank 1 on {host}: data"):
        assert part in words, said
    assert [path.name for path in tmp_path.rglob("*")] == ["theirs"]


def test_a_rank_that_never_comes(tmp_path: Path) -> None:
    script = "from attvae.doctor import examine; examine.PATIENCE_S = 2; from attvae.cli import app; app()"
    command = [sys.executable, "-c", script, "doctor", "--distributed", "--out", str(tmp_path / "run")]
    alone = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    codes, (said,) = end([start(command, **alone)])
    assert codes == [1], said
    assert "Traceback" not in said
    address = f"127.0.0.1:{alone['MASTER_PORT']}"
    assert f"attvae: rank 0 on {socket.gethostname()} has not met the other ranks at {address} (" in said
    assert "1/2 clients joined" in said


def test_ranks_that_cannot_meet_since_the_port_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as listening:
        port = listening.getsockname()[1]
        command = [sys.executable, "launch/doctor.py", "--distributed", "--out", str(tmp_path / "run")]
        alone = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        codes, (said,) = end([start(command, **alone)])
    assert codes == [1], said
    assert "Traceback" not in said
    assert f"finds another program, or another run, at 127.0.0.1:{port}" in said


def refusals(digits: Path, folders: tuple[Path, Path]) -> list[str | None]:
    """What a rank of a training hears: with another learning rate, with another folder, with all alike."""
    agreement.SEEN_WITHIN_S = 1.0
    world = join()
    cfg, other = tiny(digits), tiny(digits, "train.lr=0.5")
    heard: list[str | None] = []
    for check in (
        lambda: check_same_everywhere(world, facts(other if world.rank else cfg, "data")),
        lambda: check_same_everywhere(world, facts(cfg, f"data{world.rank}")),
        lambda: check_shared(world, folders[world.rank]),
        lambda: check_same_everywhere(world, facts(cfg, "data")),
        lambda: check_shared(world, folders[0]),
    ):
        try:
            check()
            heard.append(None)
        except (ValueError, FailedOnAnotherRankError) as error:
            heard.append(f"{type(error).__name__}: {error}")
    leave()
    return heard


def test_a_training_refuses_ranks_that_differ(digits: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    first, second = run_on_ranks(refusals, 2, digits, (ours, theirs))
    host = socket.gethostname()
    lr, data, folder, *alike = first
    assert (
        f"ValueError: the ranks do not run the same: rank 1 on {host} has train.lr 0.5, on rank 0 ({host}) 0.01: " in lr
    )
    assert "data with fingerprint data1, on rank 0" in data
    assert f"the run folder is not shared: rank 1 on {host} does not see in {theirs} what rank 0 on {host}" in folder
    assert alike == [None, None]
    assert second == ["FailedOnAnotherRankError: rank 0 says why"] * 3 + [None, None]
    assert list(ours.iterdir()) == list(theirs.iterdir()) == []
