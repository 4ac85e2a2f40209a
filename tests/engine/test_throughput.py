"""The figures of a log line against sums done by hand, and against what the system says."""

import resource

import pytest
import torch
from spawn import run_on_ranks

from attvae.engine import rendezvous
from attvae.engine.throughput import Throughput, measured_tflops, peak_memory_bytes, published_tflops

TWO_RANKS = (
    {"data": 1.0, "forward": 2.0, "backward": 4.0, "step": 1.0, "evaluation": 50.0},
    {"data": 3.0, "forward": 3.0, "backward": 5.0, "step": 1.0},  # the last waited for the first one's evaluation
)
"""Seconds since the line before, in which there were two updates."""


def metrics_of_this_rank() -> dict[str, float]:
    world = rendezvous.join()
    try:
        throughput = Throughput(world, flops_per_image=10**9, global_batch=6, precision="fp32")
        throughput._peak_tflops = 0.5
        world.phases.take = lambda: TWO_RANKS[world.rank]  # type: ignore[method-assign]
        return throughput.metrics(12)
    finally:
        rendezvous.leave()


def test_metrics_of_two_ranks() -> None:
    first, second = run_on_ranks(metrics_of_this_rank, 2)
    assert first == second
    assert first.pop("perf/peak_memory_gb_min") <= first["perf/peak_memory_gb_mean"]
    assert first.pop("perf/peak_memory_gb_mean") <= first.pop("perf/peak_memory_gb_max")
    assert first == pytest.approx(
        {
            "perf/images_per_s": 12 / 8,
            "perf/data_s_min": 0.5,
            "perf/data_s_mean": 1.0,
            "perf/data_s_max": 1.5,
            "perf/forward_s_min": 1.0,
            "perf/forward_s_mean": 1.25,
            "perf/forward_s_max": 1.5,
            "perf/backward_s_min": 2.0,
            "perf/backward_s_mean": 2.25,
            "perf/backward_s_max": 2.5,
            "perf/step_s_min": 0.5,
            "perf/step_s_mean": 0.5,
            "perf/step_s_max": 0.5,
            "perf/update_s_min": 4.0,
            "perf/update_s_mean": 5.0,
            "perf/update_s_max": 6.0,
            "perf/tflops": 0.75e-3,  # 1.5 images/s of 1 GFLOP on two ranks
            "perf/mfu": 3e-3,
        }
    )


def test_peak_memory_is_what_the_system_counts() -> None:
    before = peak_memory_bytes(torch.device("cpu"))
    freed = torch.ones(200_000_000, dtype=torch.uint8)
    del freed
    after = peak_memory_bytes(torch.device("cpu"))
    assert after == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, rel=0.02)
    assert after >= before


@pytest.mark.parametrize(
    ("gpu", "half", "fp32"),
    [
        ("Tesla V100-SXM2-32GB", 125, 15.7),
        ("NVIDIA A100-SXM4-40GB", 312, 156),
        ("A100-PCIE-40GB", 312, 156),
        ("NVIDIA A100 80GB PCIe", 312, 156),
        ("NVIDIA H100 80GB HBM3", 989.4, 494.7),
        ("NVIDIA H100 PCIe", 756, 378),
        ("NVIDIA H200", 989.5, 494.5),
        ("NVIDIA L4", 121, 60),
        ("NVIDIA L40S", 362.05, 183),
        ("NVIDIA A10", 125, 62.5),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6),
        ("NVIDIA B200", 2250, 1100),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None, None),  # a part of a GPU
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None),
        ("NVIDIA A10G", None, None),
    ],
)
def test_published_peaks(gpu: str, half: float | None, fp32: float | None) -> None:
    assert torch.backends.cudnn.allow_tf32, "torch's convolutions use TF32 unless they are told not to"
    assert published_tflops(gpu, "autocast") == published_tflops(gpu, "fp16") == half
    assert published_tflops(gpu, "fp32") == fp32


def test_without_tf32_the_peak_is_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert published_tflops("NVIDIA A100-SXM4-80GB", "fp32") == 19.5


def test_the_measured_peak_is_one_of_a_processor() -> None:
    """A core does at most two products of 16 numbers and as many sums at a time, at most 6e9 times a second."""
    found = measured_tflops(torch.device("cpu"), "fp32")
    assert 1e-3 < found < torch.get_num_threads() * 2 * 2 * 16 * 6e9 / 1e12
