"""A real Slurm of one's own, on this machine: its daemons, key, ports and state are nobody else's, and end with it."""

import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from launched import wait_for
from spawn import free_port

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=batch_sched_delay=1,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL PriorityTier=2
"""


class SlurmCluster:
    """The commands of a running Slurm of two nodes, each with room for one task. A job in the partition `high` preempts
    those in `low`: the signal that they ask for, 60 s to end by themselves, then force.
    """

    def __init__(self, configuration: Path) -> None:
        self.environment = {**os.environ, "SLURM_CONF": str(configuration)}

    def run(self, *command: str | Path, **environment: str) -> str:
        """What a command of Slurm printed."""
        environment = {**self.environment, **environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        shown = self.run("scontrol", "show", "job", number)
        return dict(field.split("=", 1) for field in shown.split() if "=" in field)

    def processes(self) -> list[psutil.Process]:
        """Every living process that this Slurm or a job of it started."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]:
                    found.append(process)
            except psutil.Error:
                continue
        return found


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[SlurmCluster]:
    """All that it writes is in the folder, and all of its processes are gone afterwards, also what a job has left."""
    programs = {name: shutil.which(name, path=os.defpath + ":/usr/sbin") for name in ("munged", "slurmctld", "slurmd")}
    if None in programs.values():
        raise FileNotFoundError(f"no Slurm on this machine ({programs}): run tests/install_slurm.sh")
    host = socket.gethostname().partition(".")[0]
    nodes = [host, f"{host}-2"]  # jobs start on the first, whose name must have an address
    (folder / "state").mkdir(parents=True)
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(
            host=host,
            port=free_port(),
            folder=folder,
            user=getpass.getuser(),
            nodes="\n".join(
                f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=1" for node in nodes
            ),
        )
    )
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    munge_files = [f"--{kind}-file={folder / 'munge'}.{kind}" for kind in ("key", "log", "pid", "seed")]
    munged = ["munged", "--force", "--foreground", f"--socket={folder / 'munge.socket'}", *munge_files]

    cluster = SlurmCluster(folder / "slurm.conf")
    daemons: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        program = str(programs[command[0]])
        with (folder / f"{command[0]}-{len(daemons)}.log").open("wb") as log:
            daemon = subprocess.Popen(
                [program, *command[1:]], env=cluster.environment, stdout=log, stderr=subprocess.STDOUT
            )
        daemons.append(daemon)

    try:
        start(*munged)
        assert wait_for((folder / "munge.socket").exists, 10), (folder / "munge.log").read_text()
        start("slurmctld", "-D")
        for node in nodes:
            start("slurmd", "-D", "-N", node)
        assert wait_for(lambda: is_ready(cluster), 30), [path.read_text() for path in folder.glob("slurm*.log")]
        yield cluster
        cluster.run("scancel", "--user", getpass.getuser())
        wait_for(lambda: not cluster.run("squeue", "--noheader"), 40)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in cluster.processes():
            process.kill()


def is_ready(cluster: SlurmCluster) -> bool:
    states = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--partition=low", "--format=%T"],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return states.stdout.split() == ["idle", "idle"]
