"""Runs across two hosts (`two_hosts.py`) under each launcher that needs no cluster software; then a host dies."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launched import PLAIN, REPOSITORY, arguments, command, result, run, start_ranks, wait_for
from two_hosts import Host, two_hosts

import attvae
from attvae.engine.watchdog import BEAT_S, SILENT_BEATS, UNANSWERED_BEATS
from attvae.tracking.jsonl import read

pytestmark = pytest.mark.multinode

Result = tuple[dict[str, Any], list[dict[str, float]]]
Launcher = Callable[[Host, Host, list[str], Path], list[subprocess.Popen[str]]]

OPTIONS = ("train.samples=4000",)
SLOW_S = 240.0
"""A run from its start to its end takes some 20 s; more on a machine that is busy with something else."""

ENDS_S = 15.0
"""Beside the time for the verdict: the stacks, and the launchers, which look once in a few seconds."""

KEEPER = "rank 0 on host-a, or the launcher there, which keeps the ranks' common store,"
DEEPSPEED = str(Path(sys.executable).with_name("deepspeed"))


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    with two_hosts(tmp_path / "hosts") as both:
        yield both


@pytest.fixture(scope="module")
def undisturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Two ranks of this machine."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    for rank in start_ranks(command(digits, out, *OPTIONS), 2):
        output, _ = rank.communicate(timeout=SLOW_S)
        assert rank.returncode == 0, output
    return result(out)


# ------------------------------------------------------------------------------------------------------- launchers


def hostfile(folder: Path, *lines: str) -> list[str]:
    (folder / "hosts.txt").write_text("\n".join(lines) + "\n")
    return ["--hostfile", str(folder / "hosts.txt")]


def pdsh(a: Host, b: Host, program: list[str], folder: Path) -> list[subprocess.Popen[str]]:
    """The variables of this host go to the other one in a file, `.deepspeed_env` where DS_ENV_FILE names no other."""
    (folder / "env").write_text("OMP_NUM_THREADS=1\nDS_ACCELERATOR=cpu\n")
    options = hostfile(folder, "# two hosts", f"{a.name} slots=1", f"{b.name} slots=1")
    return [a.start([DEEPSPEED, *options, *program], DS_ENV_FILE=str(folder / "env"))]


def no_ssh(a: Host, b: Host, program: list[str], folder: Path) -> list[subprocess.Popen[str]]:
    return no_ssh_each([a, b], [program, program], folder)


def no_ssh_each(hosts: list[Host], programs: list[list[str]], folder: Path) -> list[subprocess.Popen[str]]:
    master = ["--no_ssh", "--master_addr", hosts[0].name]
    options = [*hostfile(folder, *(f"{host.name} slots=1" for host in hosts)), *master]
    return [
        host.start([DEEPSPEED, *options, "--node_rank", str(n), *program])
        for n, (host, program) in enumerate(zip(hosts, programs, strict=True))
    ]


def torchrun(a: Host, b: Host, program: list[str], folder: Path) -> list[subprocess.Popen[str]]:
    options = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", a.name]
    return [
        host.start([sys.executable, "launch/torchrun.py", *options, "--node-rank", str(n), *program])
        for n, host in enumerate((a, b))
    ]


def train(digits: Path, out: Path, *overrides: str) -> list[str]:
    return ["launch/train.py", *arguments(digits, out, *overrides)]


def outputs(launchers: list[subprocess.Popen[str]], seconds: float) -> list[str]:
    assert wait_for(lambda: all(launcher.poll() is not None for launcher in launchers), seconds), "one is still there"
    return [launcher.communicate()[0] for launcher in launchers]


def failed(launchers: list[subprocess.Popen[str]], hosts: tuple[Host, Host], seconds: float = SLOW_S) -> str:
    """What all of them printed; none ends well, and none leaves a process behind."""
    said = outputs(launchers, seconds)
    assert all(launcher.returncode for launcher in launchers), said
    assert wait_for(lambda: not any(host.python() for host in hosts), 30), "no process is left on any host"
    return "".join(said)


# ------------------------------------------------------------------------------------------------- a host is gone


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("launcher", "harm", "noticed_s", "messages"),
    [
        (
            pdsh,
            lambda a, b: b.kill(),
            SILENT_BEATS * BEAT_S,
            ["rank 1 on host-b is gone: no sign of life for 10 s"],
        ),
        (
            no_ssh,
            lambda a, b: a.kill(),
            SILENT_BEATS * BEAT_S,
            ["", f"{KEEPER} is gone: the connection is closed"],
        ),
        (
            torchrun,
            lambda a, b: b.cut(),
            UNANSWERED_BEATS * BEAT_S,
            ["rank 1 on host-b is gone: no sign of life for 10 s", f"{KEEPER} is gone, or cut off: no answer for 30 s"],
        ),
    ],
    ids=["pdsh", "no_ssh", "torchrun"],
)
def test_a_host_is_gone_and_the_same_command_goes_on(
    launcher: Launcher,
    harm: Callable[[Host, Host], None],
    noticed_s: float,
    messages: list[str],
    undisturbed: Result,
    digits: Path,
    tmp_path: Path,
) -> None:
    """The other host's rank names it and ends; then the figures of a run that never lost a host."""
    out = tmp_path / "run"
    program = train(digits, out, *OPTIONS)
    with two_hosts(tmp_path / "1") as hosts:
        launchers = launcher(*hosts, program, tmp_path)
        assert wait_for(lambda: newest(out), SLOW_S)
        assert all(host.python() for host in hosts), "both work"
        harm(*hosts)
        said = outputs(launchers, noticed_s + ENDS_S)
        assert all(process.returncode for process in launchers), said
        assert wait_for(lambda: not any(host.python() for host in hosts), ENDS_S), "no process is left on any host"
    for output, message in zip(said, messages, strict=True):
        assert message in output
    assert 0 < newest(out) < 4000

    alone = tmp_path / "alone"
    if launcher is torchrun:
        shutil.copytree(out, alone)
        run(command(digits, alone, *OPTIONS))
        assert_close(result(alone), undisturbed)

    with two_hosts(tmp_path / "2") as hosts:
        launchers = launcher(*hosts, program, tmp_path)
        said = outputs(launchers, SLOW_S)
    assert not any(process.returncode for process in launchers), said
    assert result(out) == undisturbed
    assert json.loads((out / "environment.json").read_text())["world_size"] == 2


def test_the_deepspeed_command_ends_and_all_hosts_save(hosts: tuple[Host, Host], digits: Path, tmp_path: Path) -> None:
    """Killed: its ssh connections close, and with them what the ranks would print to."""
    out = tmp_path / "run"
    options = (PLAIN, "train.samples=1000000", "checkpoint.every=1000000")
    [launcher] = pdsh(*hosts, train(digits, out, *options), tmp_path)
    assert wait_for(lambda: read(out / "metrics.jsonl"), SLOW_S)
    hosts[0].hang_up()
    assert launcher.wait(30)
    assert wait_for(lambda: not any(host.python() for host in hosts), 60), "no process is left on any host"
    assert newest(out)
    assert not (out / "stacks").exists()


def newest(out: Path) -> int:
    return max((int(folder.name) for folder in out.glob("checkpoints/*") if folder.name.isdigit()), default=0)


def assert_close(found: Result, expected: Result) -> None:
    assert found[0]["test"]["nelbo_nats"] == pytest.approx(expected[0]["test"]["nelbo_nats"], rel=1e-5)
    assert [row["samples_seen"] for row in found[1]] == [row["samples_seen"] for row in expected[1]]
    for row, sound in zip(found[1], expected[1], strict=True):
        assert row == pytest.approx(sound, rel=1e-5, abs=1e-7)


# ------------------------------------------------------------------------------------------------------- bad input


def test_bad_hostfiles(hosts: tuple[Host, Host], digits: Path, tmp_path: Path) -> None:
    a, _ = hosts
    for lines, options, message in [
        (["host-a slots=1", "host-b slots=1", "host-a slots=1"], [], "Hostfile contains multiple entries for host-a"),
        (["host-a slots=1", "host-b"], [], "Hostfile contains a bad entry: host-b"),
        (["host-a slots=1", "host-b slots=1"], ["--include", "host-b:0,1"], "No slot '1' specified on host 'host-b'"),
    ]:
        program = [*options, *train(digits, tmp_path / "run")]
        launcher = a.start([DEEPSPEED, *hostfile(tmp_path, *lines), *program])
        assert message in failed([launcher], hosts)
    assert not (tmp_path / "run").exists()


def test_host_that_cannot_be_reached(hosts: tuple[Host, Host], digits: Path, tmp_path: Path) -> None:
    a, b = hosts
    b.cut()
    program = ["tests/impatient_train.py", *train(digits, tmp_path / "run")[1:]]
    output = failed(pdsh(a, b, program, tmp_path), hosts)
    assert "host-b: ssh: connect to host host-b port 22:" in output  # at once
    assert "attvae: rank 0 on host-a has not met the other ranks at 10.77.0.1:29500" in output
    assert "1/2 clients joined" in output


def test_host_that_torchrun_cannot_reach(hosts: tuple[Host, Host], digits: Path, tmp_path: Path) -> None:
    hosts[1].cut()
    launchers = torchrun(*hosts, ["--rdzv-conf", "timeout=5", *train(digits, tmp_path / "run")], tmp_path)
    said = outputs(launchers, SLOW_S)
    for number, (launcher, output) in enumerate(zip(launchers, said, strict=True)):
        assert launcher.returncode == 1
        assert f"node {number} on {hosts[number].name} has not met the other ranks at host-a:29500" in output
        assert "Traceback" not in output
    assert "1/2 clients joined" in said[0]


@pytest.mark.parametrize(("launcher", "place"), [(no_ssh, "rank"), (torchrun, "node")], ids=["no_ssh", "torchrun"])
def test_master_port_of_another_program(
    launcher: Launcher, place: str, hosts: tuple[Host, Host], digits: Path, tmp_path: Path
) -> None:
    a, _ = hosts
    listen = "import socket; s = socket.create_server(('', 29500)); print('open', flush=True); s.accept()[0].recv(0)"
    other = a.start([sys.executable, "-c", f"{listen}; __import__('time').sleep(600)"])
    assert other.stdout is not None
    other.stdout.readline()
    launchers = launcher(*hosts, train(digits, tmp_path / "run"), tmp_path)
    said = outputs(launchers, 60)
    for number, (process, output) in enumerate(zip(launchers, said, strict=True)):
        assert process.returncode
        where = f"{place} {number} on {hosts[number].name}"
        assert f"{where} finds another program, or another run, at host-a:29500" in output
        assert "--master_port" in output
        assert "Traceback" not in output


def test_hosts_that_do_not_run_the_same(hosts: tuple[Host, Host], digits: Path, tmp_path: Path) -> None:
    """One has other sources, and was given another command."""
    other = tmp_path / "__init__.py"
    other.write_text((REPOSITORY / "attvae" / "__init__.py").read_text().replace(attvae.__version__, "0.0.1"))
    hosts[1].run("mount", "--bind", str(other), str(REPOSITORY / "attvae" / "__init__.py"))
    programs = [train(digits, tmp_path / "run", lr) for lr in ("train.lr=0.01", "train.lr=0.02")]
    output = failed(no_ssh_each([*hosts], programs, tmp_path), hosts)
    [said] = [line for line in output.splitlines() if "the ranks do not run the same" in line]
    assert "rank 1 on host-b has attvae 0.0.1 with sources " in said
    assert f", on rank 0 (host-a) {attvae.__version__} with sources " in said
    assert "train.lr 0.02, on rank 0 (host-a) 0.01" in said
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_run_folder_that_is_not_shared(hosts: tuple[Host, Host], digits: Path, tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    hosts[1].run("mount", "-t", "tmpfs", "none", str(tmp_path / "local"))
    launchers = no_ssh(*hosts, train(digits, tmp_path / "local" / "run"), tmp_path)
    output = failed(launchers, hosts)
    assert output.count("the run folder is not shared: rank 1 on host-b does not see in") == 1
    assert "Traceback" not in output
