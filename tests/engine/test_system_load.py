"""The figures of the machine against what the system says."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from attvae.engine.system_load import SystemLoad

CPU = torch.device("cpu")


def meminfo_bytes(name: str) -> int:
    """Of the host, as Linux tells it."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def test_figures_of_the_host(tmp_path: Path) -> None:
    metrics = SystemLoad(CPU, tmp_path).metrics()
    assert metrics.keys() == {
        "system/cpu_percent",
        "system/process_memory_gb",
        "system/memory_used_gb",
        "system/memory_free_gb",
        "system/disk_free_gb",
    }
    total = meminfo_bytes("MemTotal")
    assert metrics["system/memory_used_gb"] + metrics["system/memory_free_gb"] == pytest.approx(total / 1e9)
    assert metrics["system/memory_free_gb"] == pytest.approx(meminfo_bytes("MemAvailable") / 1e9, abs=0.1 * total / 1e9)
    disk = os.statvfs(tmp_path)
    assert metrics["system/disk_free_gb"] == pytest.approx(disk.f_bavail * disk.f_frsize / 1e9, rel=0.05)


def test_work_since_the_last_call_counts(tmp_path: Path) -> None:
    """One busy core of n takes about 100 / n percent."""
    load = SystemLoad(CPU, tmp_path)
    until = time.process_time() + 0.5
    while time.process_time() < until:
        pass
    busy = load.metrics()["system/cpu_percent"]
    assert 50 / (os.cpu_count() or 1) <= busy <= 100


def test_processes_that_it_started_count(tmp_path: Path) -> None:
    load = SystemLoad(CPU, tmp_path)
    before = load.metrics()["system/process_memory_gb"]
    hold = "held = bytearray(b'x') * 300_000_000; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        during = load.metrics()["system/process_memory_gb"]
        child.communicate(b"\n")
    assert during - before == pytest.approx(0.3, abs=0.05)
    assert load.metrics()["system/process_memory_gb"] == pytest.approx(before, abs=0.05)


def test_a_disk_that_is_away_ends_nothing(tmp_path: Path) -> None:
    metrics = SystemLoad(CPU, tmp_path / "away").metrics()
    assert "system/disk_free_gb" not in metrics
    assert "system/cpu_percent" in metrics


def fake_gpu(monkeypatch: pytest.MonkeyPatch, utilization: object) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    monkeypatch.setattr(torch.cuda, "power_draw", lambda device: 412_345)


def gpu_metrics(tmp_path: Path) -> dict[str, float]:
    metrics = SystemLoad(torch.device("cuda", 0), tmp_path).metrics()
    return {name: value for name, value in metrics.items() if name.startswith("system/gpu")}


def test_units_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpu(monkeypatch, lambda device: 93)
    assert gpu_metrics(tmp_path) == {
        "system/gpu_memory_gb": 50.0,
        "system/gpu_percent": 93,
        "system/gpu_power_w": 412.345,
    }


def test_a_gpu_that_does_not_tell_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_nvml(device: object) -> int:
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed or it can't be imported.")

    fake_gpu(monkeypatch, without_nvml)
    assert gpu_metrics(tmp_path) == {"system/gpu_memory_gb": 50.0}


@pytest.mark.gpu
def test_a_real_gpu(tmp_path: Path) -> None:
    """Against nvidia-smi: the memory of a tensor, and power within what such cards draw."""
    before = gpu_metrics(tmp_path)["system/gpu_memory_gb"]
    held = torch.ones(10**9, dtype=torch.uint8, device="cuda")
    found = gpu_metrics(tmp_path)
    assert found["system/gpu_memory_gb"] - before == pytest.approx(1.0, abs=0.1)
    asked = ["nvidia-smi", "--query-gpu=memory.used,power.draw", "--format=csv,noheader,nounits", "--id=0"]
    used_mib, power_w = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split(",")
    assert found["system/gpu_memory_gb"] == pytest.approx(float(used_mib) * 2**20 / 1e9, abs=1.0)
    if "system/gpu_power_w" in found:  # where NVML for Python is installed
        assert found["system/gpu_power_w"] == pytest.approx(float(power_w), rel=0.5)
        assert 0 <= found["system/gpu_percent"] <= 100
    del held
