"""The Dockerfile and the scripts that do its work: as far as that can be tried without Docker and CUDA."""

import os
import re
import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from launched import REPOSITORY, TINY

SCRIPTS = sorted((REPOSITORY / "launch" / "container").glob("*.sh"))
SLIM = ["bash", "cat", "cp", "dirname", "env", "grep", "ls", "mkdir", "rm", "sh", "uname"]


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def test_shellcheck_and_hadolint_find_nothing() -> None:
    assert len(SCRIPTS) == 2
    for command in ([tool("shellcheck"), *SCRIPTS], [tool("hadolint"), REPOSITORY / "Dockerfile"]):
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert found.returncode == 0, found.stdout + found.stderr
        assert not found.stdout


def stages() -> dict[str, str]:
    found = re.split(r"^FROM \S+ AS (\S+)$", (REPOSITORY / "Dockerfile").read_text(), flags=re.MULTILINE)
    return dict(zip(found[1::2], found[2::2], strict=True))


def test_each_stage_runs_its_script_and_not_as_root() -> None:
    assert stages().keys() == {"cpu", "gpu"}
    for name, stage in stages().items():
        assert f"RUN launch/container/install_{name}.sh" in stage
        assert re.findall(r"^USER (.+)$", stage, flags=re.MULTILINE) == ["10001"]
    for script in SCRIPTS:
        assert os.access(script, os.X_OK)


def test_what_is_compiled_has_the_names_that_deepspeed_knows() -> None:
    """DeepSpeed ignores a DS_BUILD_ variable that it does not know."""
    asked = re.findall(r"\b(DS_BUILD_\w+)=1", (REPOSITORY / "launch/container/install_gpu.sh").read_text())
    builders = "".join(path.read_text() for path in Path(str(files("deepspeed") / "ops" / "op_builder")).glob("*.py"))
    assert asked
    assert set(asked) <= set(re.findall(r'BUILD_VAR = "(\w+)"', builders))


def slim(folder: Path) -> dict[str, str]:
    """The environment of a machine that has Python and little else, no compiler: that of python:3.11-slim. Where pip
    finds packages is the machine's affair.
    """
    binaries, home = folder / "bin", folder / "home"
    binaries.mkdir()
    home.mkdir()
    for name in SLIM:
        found = shutil.which(name)
        assert found is not None, name
        (binaries / name).symlink_to(found)
    (binaries / "python3").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or "proxy" in name.lower()}
    return {**pip, "PATH": str(binaries), "HOME": str(home), "LANG": "C.UTF-8"}


def test_the_gpu_script_wants_a_toolkit(tmp_path: Path) -> None:
    script = REPOSITORY / "launch/container/install_gpu.sh"
    found = subprocess.run(
        [script, tmp_path / "attvae"], env=slim(tmp_path), capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 1
    assert "no nvcc on the PATH" in found.stderr
    assert not (tmp_path / "attvae").exists()


def write_stub(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)


@pytest.mark.parametrize("release", ["13.0", "12.8"])
def test_the_gpu_script_builds_for_the_cuda_of_torch_or_not_at_all(tmp_path: Path, release: str) -> None:
    """Its commands, with stubs in the place of Python, pip and nvcc: nothing is compiled here."""
    environment, prefix, log = slim(tmp_path), tmp_path / "attvae", tmp_path / "log"
    (tmp_path / "bin" / "python3").unlink()
    write_stub(tmp_path / "bin" / "python3", f'echo "$@" >> {log}')
    write_stub(tmp_path / "bin" / "nvcc", f'echo "Cuda compilation tools, release {release}, V{release}.1"')
    write_stub(prefix / "bin" / "pip", f"env | grep _EXT= >> {log}", f'echo "$@" >> {log}')
    write_stub(prefix / "bin" / "python", "echo 13.0")
    write_stub(prefix / "bin" / "attvae", "echo attvae")
    found = subprocess.run(
        [REPOSITORY / "launch/container/install_gpu.sh", prefix],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    commands = log.read_text()
    assert commands.startswith(f"-m venv {prefix}\ninstall --quiet --constraint {REPOSITORY}/constraints.txt torch ")
    if release == "12.8":
        assert found.returncode == 1
        assert "torch is built for CUDA 13.0, but nvcc is not: Cuda compilation tools, release 12.8" in found.stderr
        assert "apex" not in commands
    else:
        assert found.returncode == 0, found.stderr
        built = re.search(r"((?:APEX_\w+=1\n)+)(.+github.com/NVIDIA/apex@[0-9a-f]{40}\n)", commands)
        assert built is not None, commands
        assert set(built[1].split()) == {"APEX_CPP_EXT=1", "APEX_CUDA_EXT=1"}
        assert "--no-build-isolation" in built[2]


def copy_of_the_repository(folder: Path) -> None:
    """What `COPY . .` copies: patterns of .dockerignore without **/ are for the top folder alone."""
    everywhere, top = ["__pycache__"], (REPOSITORY / ".dockerignore").read_text().split()

    def ignore(where: str, names: list[str]) -> set[str]:
        patterns = top + everywhere if Path(where) == REPOSITORY else everywhere
        return shutil.ignore_patterns(*patterns)(where, names)

    shutil.copytree(REPOSITORY, folder, ignore=ignore)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_cpu_stage_trains_on_a_machine_that_has_only_python(tmp_path: Path) -> None:
    source, prefix = tmp_path / "source", tmp_path / "attvae"
    copy_of_the_repository(source)
    environment = {**slim(tmp_path), "PIP_NO_COMPILE": "no"}  # none: it takes longer than all the rest

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, timeout=800)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert run(source / "launch/container/install_cpu.sh", prefix).startswith("attvae ")
    environment["PATH"] = f"{prefix}/bin:{environment['PATH']}"
    run("python", "-m", "data_prep", "digits")
    printed = run("attvae", "train", *TINY, "train.samples=500", "--out", "runs/tiny")
    assert "test" in printed
    assert (source / "runs/tiny/summary.json").is_file()
