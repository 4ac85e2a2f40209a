"""`launch/slurm.sbatch`: its decisions with stubs in Slurm's place, and a run's whole life on a real Slurm."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from launched import PLAIN, REPOSITORY, arguments, processes_of, result, wait_for
from slurm_cluster import SlurmCluster, slurm_cluster

from attvae.tracking.jsonl import read

SCRIPT = "launch/slurm.sbatch"


def test_shellcheck_finds_nothing() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    found = subprocess.run(
        [shellcheck, SCRIPT, "launch/slurm_requeue.sh", "tests/install_slurm.sh"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode == 0, found.stdout


# --------------------------------------------------------------------------------------------- with stubs, anywhere


def write_stub(path: Path, *lines: str) -> None:
    path.write_text("\n".join(["#!/bin/bash", *lines]) + "\n")
    path.chmod(0o755)


def run_script(folder: Path, *codes: int, cwd: Path = REPOSITORY, **environment: str) -> tuple[int, list[str], str]:
    """On nodes whose ranks return these codes. Its own, the commands of Slurm and Python that it ran, what it said."""
    stubs, log = folder / "stubs", folder / "log"
    stubs.mkdir()
    write_stub(
        stubs / "srun",
        f'echo "srun cpus=$SRUN_CPUS_PER_TASK" >> {log}',
        'while [ "$1" != bash ]; do shift; done',
        "highest=0",
        f"for node in {' '.join(map(str, range(len(codes))))}; do",
        "    code=0",
        '    SLURM_NODEID=$node SLURMD_NODENAME=node$((7 + node)) "$@" || code=$?',
        "    ((code <= highest)) || highest=$code",
        "done",
        "exit $highest",
    )
    write_stub(
        stubs / "python", f'echo "python $*" >> {log}', f"codes=({' '.join(map(str, codes))})", "exit ${codes[$3]}"
    )
    write_stub(
        stubs / "squeue",
        f"echo squeue >> {log}",
        f"(($(grep --count squeue {log}) > ${{BUSY:-0}})) || exit 1",
        'echo "${STATE:-RUNNING}"',
    )
    write_stub(stubs / "scontrol", f'echo "scontrol $*" >> {log}')
    write_stub(stubs / "sleep")
    job = {"SLURM_JOB_ID": "123456", "SLURM_JOB_NUM_NODES": "2", "SLURMD_NODENAME": "node7"}
    done = subprocess.run(
        ["bash", REPOSITORY / SCRIPT, "configs/demo.yaml", "train.lr=1e-3"],
        cwd=cwd,
        env={"PATH": f"{stubs}:{os.environ['PATH']}", **job, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, log.read_text().splitlines() if log.exists() else [], done.stderr


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [({}, 1), ({"SLURM_GPUS_ON_NODE": "8"}, 8), ({"SLURM_GPUS_ON_NODE": "8", "NPROC": "4"}, 4)],
)
def test_each_node_is_a_torchrun_with_a_rank_for_each_gpu(
    tmp_path: Path, environment: dict[str, str], ranks: int
) -> None:
    code, commands, _ = run_script(tmp_path, 0, 0, SLURM_CPUS_PER_TASK="64", **environment)
    assert code == 0
    assert commands == [
        "srun cpus=64",
        *(
            f"python launch/torchrun.py --node-rank {node} --nnodes 2 --nproc-per-node {ranks} --master-addr node7 "
            "--master-port 23456 launch/train.py configs/demo.yaml train.lr=1e-3"
            for node in (0, 1)
        ),
    ]


@pytest.mark.parametrize(
    ("codes", "environment", "returned"),
    [
        ((75, 75), {}, None),
        ((75, 128 + 10), {}, None),  # SIGUSR1 before anything listened
        ((128 + 15, 128 + 15), {}, None),
        ((75, 0), {}, None),
        ((75, 75), {"SLURM_RESTART_COUNT": "19"}, None),
        ((75, 75), {"SLURM_RESTART_COUNT": "20"}, 75),
        ((75, 75), {"SLURM_RESTART_COUNT": "20", "ATTVAE_MAX_REQUEUES": "21"}, None),
        ((75, 75), {"STATE": "COMPLETING"}, 75),  # cancelled
        ((75, 75), {"BUSY": "2"}, None),
        ((75, 75), {"BUSY": "3"}, 75),
        ((75, 1), {}, 1),
        ((2, 75), {}, 2),
        ((75, 128 + 9), {}, 128 + 9),
        ((128 + 9, 2), {}, 2),  # killed for waiting
        ((127, 127), {}, 127),  # no python
        ((0, 0), {}, 0),
    ],
)
def test_only_what_was_stopped_is_requeued(
    tmp_path: Path, codes: tuple[int, int], environment: dict[str, str], returned: int | None
) -> None:
    """None: it is requeued."""
    code, commands, said = run_script(tmp_path, *codes, **environment)
    assert ("scontrol requeue 123456" in commands) == (returned is None)
    assert code == (returned or 0)
    assert ("ATTVAE_MAX_REQUEUES=20" in said) == (environment == {"SLURM_RESTART_COUNT": "20"})
    assert ("squeue does not say" in said) == (environment == {"BUSY": "3"})
    for number, each in enumerate(codes, 7):
        assert (f"node{number} ends with {each}\n" in said) == (each not in (0, 75, 128 + 10, 128 + 15))


def test_elsewhere_than_in_the_repository_it_says_so(tmp_path: Path) -> None:
    code, commands, said = run_script(tmp_path, 0, cwd=tmp_path)
    assert (code, commands) == (2, [])
    assert f"there is no launch/torchrun.py in {tmp_path}" in said


# -------------------------------------------------------------------------------------------------- on a real Slurm


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster
    assert not cluster.processes()


def submit(
    cluster: SlurmCluster, digits: Path, out: Path, *overrides: str, sources: Path = REPOSITORY, **environment: str
) -> str:
    """The job's number. Two nodes with a rank each; the job's log is beside the run folder."""
    return cluster.run(
        *("sbatch", "--parsable", "--nodes", "2", "--chdir", sources, "--output", log_of(out)),
        *(REPOSITORY / SCRIPT, *arguments(digits, out, "data.workers=1", *overrides)),
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        DS_ACCELERATOR="cpu",
        OMP_NUM_THREADS="1",
        **environment,
    )


def log_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.log")


def has_logged(out: Path, after: int) -> bool:
    rows = read(out / "metrics.jsonl")
    return bool(rows) and rows[-1]["samples_seen"] > after


def saved(out: Path) -> int:
    """The samples of the newest checkpoint."""
    return max((int(folder.name) for folder in (out / "checkpoints").glob("*") if folder.name.isdigit()), default=0)


def wait_for_state(cluster: SlurmCluster, job: str, state: str, out: Path) -> None:
    def reached() -> bool:
        return cluster.job(job)["JobState"] == state

    assert wait_for(reached, 180), f"{cluster.job(job)}\n{log_of(out).read_text()}"


def come_back(cluster: SlurmCluster, job: str, out: Path, times: int) -> None:
    """Spares a requeued job the two minutes that it waits for."""
    wait_for_state(cluster, job, "PENDING", out)
    assert cluster.job(job)["Restarts"] == str(times)
    # In the second of its requeue its new credential would pass for the old one, which is revoked.
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now+2")


LENGTH = (PLAIN, "train.samples=10000", "eval.every=5000")


@pytest.mark.slurm
@pytest.mark.timeout(600)
def test_a_job_that_is_preempted_signalled_and_cancelled_ends_as_an_undisturbed_one(
    cluster: SlurmCluster, digits: Path, tmp_path: Path
) -> None:
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "run"
    first = submit(cluster, digits, undisturbed, *LENGTH)
    wait_for_state(cluster, first, "COMPLETED", undisturbed)

    stopped_at = 0

    def stop(*command: str, state: str) -> None:
        """Once the job trains; the run is further than at the stop before, and is saved there."""
        nonlocal stopped_at
        assert wait_for(partial(has_logged, out, stopped_at), 90), log_of(out).read_text()
        cluster.run(*command)
        wait_for_state(cluster, job, state, out)
        assert wait_for(lambda: not processes_of(out), 30), "no process is left behind"
        assert stopped_at < saved(out) < 10000, log_of(out).read_text()
        stopped_at = saved(out)

    job = submit(cluster, digits, out, *LENGTH, ATTVAE_MAX_REQUEUES="2")
    stop("sbatch", "--wait", "--partition=high", "--nodes=2", "--output=/dev/null", "--wrap=true", state="PENDING")
    assert "SIGUSR1: saving, then ending" in log_of(out).read_text()
    come_back(cluster, job, out, times=1)
    stop("scancel", "--signal=USR1", job, state="PENDING")
    come_back(cluster, job, out, times=2)
    stop("scancel", "--signal=TERM", job, state="FAILED")
    assert cluster.job(job)["ExitCode"] == "75:0"
    assert "not requeued: that was done 2 times (ATTVAE_MAX_REQUEUES=2)" in log_of(out).read_text()

    job = submit(cluster, digits, out, *LENGTH)
    stop("scancel", job, state="CANCELLED")
    assert cluster.job(job)["Restarts"] == "0"

    job = submit(cluster, digits, out, *LENGTH)
    wait_for_state(cluster, job, "COMPLETED", out)
    assert result(out) == result(undisturbed)


@pytest.mark.slurm
def test_bad_input_is_said_once_and_the_job_is_not_requeued(
    cluster: SlurmCluster, digits: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    job = submit(cluster, digits, out, "train.global_batch=99")
    wait_for_state(cluster, job, "FAILED", out)
    assert (cluster.job(job)["ExitCode"], cluster.job(job)["Restarts"]) == ("2:0", "0")
    output = log_of(out).read_text()
    assert output.count("train.global_batch") == 1, output
    assert "Traceback" not in output


def other_launcher(folder: Path, program: str) -> Path:
    """A copy of the repository whose `launch/torchrun.py` is this one."""
    (folder / "launch").mkdir(parents=True)
    for part in ("configs", "launch/train.py", "launch/slurm_requeue.sh"):
        (folder / part).symlink_to(REPOSITORY / part)
    (folder / "launch" / "torchrun.py").write_text(program)
    return folder


ENDS_WITH = """
import os, sys
sys.exit((1, 75)[int(os.environ["SLURM_NODEID"])])
"""

BAD_INPUT_ON_ONE = f"""
import os, sys
bad = ["train.global_batch=99"] if os.environ["SLURM_NODEID"] == "1" else []
os.execv(sys.executable, [sys.executable, "{REPOSITORY}/launch/torchrun.py", *sys.argv[1:], *bad])
"""


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("program", "code", "said"), [(ENDS_WITH, 1, "ends with 1"), (BAD_INPUT_ON_ONE, 2, "global_batch")]
)
def test_what_one_node_returns_is_not_hidden_by_the_other(
    program: str, code: int, said: str, cluster: SlurmCluster, digits: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    job = submit(cluster, digits, out, sources=other_launcher(tmp_path / "sources", program))
    wait_for_state(cluster, job, "FAILED", out)
    output = log_of(out).read_text()
    assert (cluster.job(job)["ExitCode"], cluster.job(job)["Restarts"]) == (f"{code}:0", "0"), output
    assert said in output
    assert not processes_of(out)
