"""What a run takes of its machine: processor, memory, disk, GPU."""

import shutil
from contextlib import suppress
from pathlib import Path

import psutil
import torch


class SystemLoad:
    """Of the one host and the one GPU of the rank that asks. Not collective: rank 0 alone may ask."""

    def __init__(self, device: torch.device, folder: Path) -> None:
        """
        Args:
            folder: whose disk is watched.
        """
        self._device = device
        self._folder = folder
        self._process = psutil.Process()
        psutil.cpu_percent()  # later calls count from here

    def metrics(self) -> dict[str, float]:
        """The figures of now; sizes are in 10^9 bytes.

        Returns:
            `system/cpu_percent` since the last call, 100 being all processors of the host; `system/process_memory_gb`,
            resident in this process and those that it started, where pages that they share count in each;
            `system/memory_used_gb` and `system/memory_free_gb` of the host, free being what a program could still get;
            `system/disk_free_gb`. With a GPU `system/gpu_memory_gb`, whoever holds it, and, where its driver tells,
            `system/gpu_percent`, the time in which it was busy, and `system/gpu_power_w`.
        """
        memory = psutil.virtual_memory()
        figures = {
            "system/cpu_percent": psutil.cpu_percent(),
            "system/process_memory_gb": self._process_memory_bytes() / 1e9,
            "system/memory_used_gb": (memory.total - memory.available) / 1e9,
            "system/memory_free_gb": memory.available / 1e9,
        }
        with suppress(OSError):  # a network disk that is away is no reason to end a run
            figures["system/disk_free_gb"] = shutil.disk_usage(self._folder).free / 1e9
        return figures | self._gpu() if self._device.type == "cuda" else figures

    def _process_memory_bytes(self) -> int:
        total = 0
        for process in (self._process, *self._process.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.Error:
                continue  # it has ended meanwhile
        return total

    def _gpu(self) -> dict[str, float]:
        free, total = torch.cuda.mem_get_info(self._device)
        figures = {"system/gpu_memory_gb": (total - free) / 1e9}
        with suppress(Exception):  # of many kinds: no NVML for Python, a driver or a part of a GPU that does not tell
            figures["system/gpu_percent"] = torch.cuda.utilization(self._device)
            figures["system/gpu_power_w"] = torch.cuda.power_draw(self._device) / 1000
        return figures
