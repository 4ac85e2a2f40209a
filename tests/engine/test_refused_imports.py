"""Imports that are refused, in one thread and for a while; and those that DeepSpeed is kept from."""

import os
import subprocess
import sys
import threading
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from launched import REPOSITORY, arguments, in_mlflow

from attvae.engine.refused_imports import refused_imports


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `refused_one` and `refused_other` can be imported from."""
    for name in ("refused_one", "refused_other"):
        (tmp_path / f"{name}.py").write_text("")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_as_if_not_installed(modules: Path) -> None:
    with refused_imports("refused_one"):
        with pytest.raises(ModuleNotFoundError, match="refused_one"):
            import_module("refused_one")
        import_module("refused_other")
        assert find_spec("refused_one") is None
        assert version("torch")  # other questions to the finders are answered
    import_module("refused_one")
    with refused_imports("refused_one"):
        import_module("refused_one")  # which is there already


def test_afterwards_the_finders_are_those_from_before_and_those_added(monkeypatch: pytest.MonkeyPatch) -> None:
    class Added:
        pass

    before = [*sys.meta_path]
    monkeypatch.setattr(sys, "meta_path", [*before])
    with refused_imports("refused_one"):
        sys.meta_path.append(Added)  # type: ignore[arg-type]
    assert sys.meta_path == [*before, Added]


def test_in_this_thread_alone(modules: Path) -> None:
    found: list[str] = []
    other = threading.Thread(target=lambda: found.append(import_module("refused_one").__name__))
    with refused_imports("refused_one"):
        other.start()
        other.join()
    assert found == ["refused_one"]


def test_deepspeed_takes_neither_mlflow_nor_the_compiler() -> None:
    """Each is a second or two of every rank's start."""
    code = """
import sys, torch
from attvae.engine.zero import import_deepspeed
import_deepspeed(torch.device("cpu"))
from deepspeed.runtime import compiler
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam
print(sorted({"mlflow", "torch._inductor.compile_fx"} & set(sys.modules)), compiler.compile() is torch.compile)
"""
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[] True"


@pytest.mark.slow
def test_a_tracked_run_keeps_mlflow_from_deepspeed(digits: Path, tmp_path: Path) -> None:
    """Though a thread of the run imports mlflow at the same time."""
    code = """
import os, sys, time
from attvae import cli, loop

def run(self):
    from deepspeed.autotuning import autotuner
    while "mlflow" not in sys.modules:
        time.sleep(0.1)
    print("has_mlflow", autotuner.has_mlflow, flush=True)
    os._exit(0)

loop.Loop.run = run
cli.app(["train", *sys.argv[1:]])
"""
    command = [sys.executable, "-c", code, *arguments(digits, tmp_path / "out", *in_mlflow(tmp_path))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "has_mlflow False"
