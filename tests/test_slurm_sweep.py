"""`launch/sweep.sbatch` on a real Slurm of two nodes: a Ray of the job's own, a sweep on it, preempted and taken up."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from launched import REPOSITORY, wait_for
from slurm_cluster import SlurmCluster, slurm_cluster
from sweeps import search_file, starts, trials

SCRIPTS = ("launch/sweep.sbatch", "launch/slurm_ray_node.sh", "launch/slurm_requeue.sh", "launch/sweep.sh")


def test_shellcheck_finds_nothing() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    found = subprocess.run([shellcheck, *SCRIPTS], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stdout


def test_elsewhere_than_in_the_repository_it_says_so(tmp_path: Path) -> None:
    found = subprocess.run(
        ["bash", REPOSITORY / SCRIPTS[0], "x.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 2
    assert f"there is no launch/slurm_ray_node.sh in {tmp_path}" in found.stderr


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm") / "cluster") as cluster:
        yield cluster


def submit(cluster: SlurmCluster, search: Path, *overrides: str) -> str:
    """The job's number."""
    return cluster.run(
        *("sbatch", "--parsable", "--nodes", "2", "--chdir", REPOSITORY, "--output", search.parent / "log"),
        *(REPOSITORY / SCRIPTS[0], search, *overrides, "--out", search.parent / "out"),
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        OMP_NUM_THREADS="1",
    )


def wait_for_state(cluster: SlurmCluster, job: str, state: str, search: Path) -> None:
    said = search.parent / "log"
    assert wait_for(lambda: cluster.job(job)["JobState"] == state, 200), f"{cluster.job(job)}\n{said.read_text()}"


def of_job(cluster: SlurmCluster, job: str) -> list[psutil.Process]:
    found = []
    for process in cluster.processes():
        try:
            if process.environ().get("SLURM_JOB_ID") == job:
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slurm
@pytest.mark.timeout(600)
def test_a_sweep_on_two_nodes_is_preempted_comes_back_and_tries_each_trial_once(
    cluster: SlurmCluster, digits: Path, tmp_path: Path
) -> None:
    """Each of Slurm's nodes has one CPU: two trials at a time need both."""
    search = search_file(tmp_path / "sweep", digits, trials=2, parallel=2, samples=6000)
    said = tmp_path / "sweep" / "log"
    job = submit(cluster, search)
    assert wait_for(lambda: said.exists() and len(set(re.findall(r"(t\d+) at ", said.read_text()))) == 2, 150), (
        said.read_text()
    )
    cluster.run("sbatch", "--partition=high", "--nodes=2", "--output=/dev/null", "--wrap=true")
    wait_for_state(cluster, job, "PENDING", search)
    assert wait_for(lambda: not of_job(cluster, job), 30), of_job(cluster, job)
    assert not list(Path("/tmp").glob(f"attvae-ray-{job}-*"))
    assert {row["status"] for row in trials(search).values()} == {"running"}
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now+2")

    wait_for_state(cluster, job, "COMPLETED", search)
    assert [(row["status"], row["samples_seen"]) for row in trials(search).values()] == [("finished", 6000)] * 2
    assert [starts(search, trial) for trial in ("t000", "t001")] == [2, 2]
    assert (tmp_path / "sweep/out/best.yaml").is_file()
    assert wait_for(lambda: not of_job(cluster, job), 30), of_job(cluster, job)
    assert "room for" not in said.read_text(), "both nodes are Ray's"
    assert not re.search("[0-9a-f]{64}", said.read_text()), "the token is nobody else's business"


@pytest.mark.slurm
def test_bad_input_is_said_and_the_job_is_not_requeued(cluster: SlurmCluster, digits: Path, tmp_path: Path) -> None:
    search = search_file(tmp_path / "sweep", digits)
    job = submit(cluster, search, "trials=0")
    wait_for_state(cluster, job, "FAILED", search)
    assert (cluster.job(job)["ExitCode"], cluster.job(job)["Restarts"]) == ("2:0", "0")
    output = (tmp_path / "sweep" / "log").read_text()
    assert output.count("trials=0") == 1 or output.count("trials") == 1, output
    assert "Traceback" not in output
