"""`launch/ray_cluster.yaml`: against Ray's own schema, and brought up by `ray up` on two hosts (`two_hosts.py`)."""

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from launched import REPOSITORY
from sweeps import search_file, trials
from two_hosts import Host, two_hosts

BIN = Path(sys.executable).parent
MAKES_THE_TOKEN = "umask 077; ray get-auth-token --generate >/dev/null"


def configuration() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((REPOSITORY / "launch/ray_cluster.yaml").read_text())
    return found


def test_ray_s_launcher_accepts_it() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(configuration())
    validate_config(prepared)
    assert prepared["max_workers"] == len(configuration()["provider"]["worker_ips"])
    with pytest.raises(jsonschema.ValidationError, match="worker_start"):
        validate_config(prepared | {"worker_start": []})


def test_the_command_that_makes_the_token_is_the_one_that_is_told() -> None:
    assert f"`{MAKES_THE_TOKEN}`" in (REPOSITORY / "launch/ray_cluster.yaml").read_text()


def test_the_options_are_those_of_ray_start_and_the_dashboard_is_on_the_loopback() -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    for kind in ("head", "worker"):
        _, command = configuration()[f"{kind}_start_ray_commands"]
        words = shlex.split(command.partition("ray start ")[2])
        options = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
        assert options.keys() <= known
        assert "RAY_AUTH_MODE=token" in command
        assert kind == "worker" or options["--dashboard-host"] == "127.0.0.1"


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    """Whose root has a home of this test's, with the token of the cluster."""
    with two_hosts(tmp_path / "hosts") as both:
        home, users = tmp_path / "home", tmp_path / "passwd"
        home.mkdir()
        users.write_text(Path("/etc/passwd").read_text().replace(":/root:", f":{home}:"))
        for host in both:
            host.run("mount", "--bind", str(users), "/etc/passwd")
        made = both[0].run("env", f"HOME={home}", f"PATH={BIN}:/usr/bin:/bin", "sh", "-c", MAKES_THE_TOKEN)
        assert (home / ".ray" / "auth_token").read_text().strip() not in made
        assert (home / ".ray" / "auth_token").stat().st_mode & 0o077 == 0
        yield both


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for Ray: the names of its sockets may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_ray_up_makes_a_cluster_on_which_a_sweep_runs(
    digits: Path, tmp_path: Path, short: Path, hosts: tuple[Host, Host]
) -> None:
    a, b = hosts  # whose end ends Ray
    text = (REPOSITORY / "launch/ray_cluster.yaml").read_text()
    here = f"PYTHONPATH={REPOSITORY} RAY_TMPDIR={short} RAY_AUTH_MODE=token"
    up = yaml.safe_load(text.replace("/opt/attvae/bin", str(BIN)).replace("RAY_AUTH_MODE=token", here))
    up["provider"] |= {"head_ip": a.address, "worker_ips": [b.address]}
    up["auth"] = {"ssh_user": "root", "ssh_private_key": str(tmp_path / "hosts/key")}
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(up))
    environment = {
        "HOME": str(tmp_path / "home"),
        "RAY_TMPDIR": str(short),
        "RAY_AUTH_MODE": "token",
        "PATH": f"{BIN}:/usr/bin:/bin",
    }

    def on_head(*command: str) -> str:
        process: subprocess.Popen[str] = a.start(list(command), **environment)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        return output

    said = on_head("ray", "up", "-y", "--no-config-cache", str(file))
    assert (tmp_path / "home/.ray/auth_token").read_text().strip() not in said
    on_head(sys.executable, "launch/wait_for_ray.py", "auto", "2")
    both = {"ranks": 2, "nodes": 2, "cpus_per_rank": 2}
    search = search_file(tmp_path / "sweep", digits, trials=1, parallel=1, samples=1000, **both)
    sweep = [sys.executable, "-m", "attvae.cli", "sweep", str(search), "--out", str(search.parent / "out")]
    on_head(*sweep, "--address", "auto")
    assert [row["status"] for row in trials(search).values()] == ["finished"]
