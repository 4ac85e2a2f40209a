"""Two hosts on one machine: Linux namespaces with a network, name, mounts and processes of their own. Needs root.

Each host's first process is its sshd: killing it ends everything on that host at once, as a power cut does. The hosts
share the file system, as a cluster does; the network has a switch, whose ports can be cut as cables are.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from launched import REPOSITORY, wait_for

NAMES = ("host-a", "host-b")
TOOLS = ("/usr/sbin/sshd", "/usr/bin/pdsh", "/usr/bin/nsenter")
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")

BOOT = """set -e
read -r name address etc
hostname "$name"
mount -t tmpfs none /run
mkdir /run/sshd
mount --bind "$etc/hosts" /etc/hosts
mount --bind "$etc" /etc/ssh
ip link set lo up
ip address add "$address/24" dev eth0
ip link set eth0 up
exec /usr/sbin/sshd -D -e
"""

SSH_CONFIG = """Host *
    IdentityFile {folder}/key
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
    BatchMode yes
    ConnectTimeout 5
    ServerAliveInterval 5
    ServerAliveCountMax 3
"""

SSHD_CONFIG = """HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
"""


class Host:
    def __init__(self, name: str, address: str, process: psutil.Process, switch: int) -> None:
        self.name = name
        self.address = address
        self._first = process
        self._space = os.readlink(f"/proc/{process.pid}/ns/pid")
        self._switch = switch

    def start(self, command: list[str], **environment: str) -> subprocess.Popen[str]:
        """Runs it there, in the repository's folder."""
        python = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": ":".join(python), **environment}
        enter = ["nsenter", f"--target={self._first.pid}", "--net", "--uts", "--mount", "--pid"]
        return subprocess.Popen(
            [*enter, "env", f"--chdir={REPOSITORY}", *command],
            env={**os.environ, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str) -> str:
        process = self.start(list(command))
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, output
        return output

    def hang_up(self) -> None:
        """Kills the `deepspeed` command, its pdsh, and the ssh to each host, all at once."""
        for process in self._processes(lambda p: p.name() in ("pdsh", "ssh") or "--hostfile" in p.cmdline()):
            process.kill()

    def python(self) -> list[psutil.Process]:
        """The living processes of this host that are Python's."""
        return self._processes(lambda p: p.exe() == os.path.realpath(sys.executable))

    def _processes(self, wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):  # it has ended meanwhile
                if os.readlink(f"/proc/{process.pid}/ns/pid") == self._space and wanted(process):
                    found.append(process)
        return found

    def kill(self) -> None:
        """Ends all its processes at once."""
        self._first.kill()
        assert wait_for(lambda: not self._first.is_running(), 10)

    def cut(self) -> None:
        """Takes its cable out of the switch."""
        _on_switch(self._switch, "link", "set", self.name, "down")


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """host-a and host-b, which reach each other by name, also by ssh without a password.

    Args:
        folder: for keys and settings; made here.
    """
    assert os.geteuid() == 0, "network namespaces with sshd in them need root"
    missing = [tool for tool in TOOLS if not Path(tool).exists()]
    assert not missing, f"missing {', '.join(missing)}: run tests/install_two_hosts.sh"
    folder.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True)
    addresses = {name: f"10.77.0.{number}" for number, name in enumerate(NAMES, 1)}
    (folder / "hosts").write_text(
        "".join(f"{address} {name}\n" for name, address in {"localhost": "127.0.0.1", **addresses}.items())
    )
    (folder / "ssh_config").write_text(SSH_CONFIG.format(folder=folder))
    (folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=folder))
    started: list[subprocess.Popen[str]] = []
    try:
        switch = subprocess.Popen([*DIES_WITH_US, "unshare", "--net", "sleep", "infinity"], text=True)
        started.append(switch)
        assert wait_for(lambda: _network(switch.pid) != _network(os.getpid()), 10)
        _on_switch(switch.pid, "link", "add", "bridge", "type", "bridge")
        _on_switch(switch.pid, "link", "set", "bridge", "up")
        hosts = []
        for name, address in addresses.items():
            outer, first = _first_process(folder / f"{name}.log")
            started.append(outer)
            _on_switch(switch.pid, *f"link add {name} type veth peer name eth0 netns {first.pid}".split())
            _on_switch(switch.pid, "link", "set", name, "master", "bridge", "up")
            assert outer.stdin is not None
            outer.stdin.write(f"{name} {address} {folder}\n")
            outer.stdin.close()
            hosts.append(Host(name, address, first, switch.pid))
        for host in hosts:
            log = folder / f"{host.name}.log"
            assert wait_for(lambda: "Server listening" in log.read_text(), 10), log.read_text()  # noqa: B023
        yield hosts[0], hosts[1]
    finally:
        for process in reversed(started):
            process.kill()  # unshare's death ends the first process, that one's all of its host
            process.wait()


def _first_process(log: Path) -> tuple[subprocess.Popen[str], psutil.Process]:
    spaces = ["--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    outer = subprocess.Popen(
        [*DIES_WITH_US, "unshare", *spaces, "sh", "-c", BOOT],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=log.open("w"),
        text=True,
    )
    assert wait_for(lambda: psutil.Process(outer.pid).children(), 10)
    [first] = psutil.Process(outer.pid).children()
    return outer, first


def _network(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


def _on_switch(pid: int, *arguments: str) -> None:
    command = ["nsenter", f"--target={pid}", "--net", "ip", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    assert done.returncode == 0, f"{command}: {done.stderr}"
