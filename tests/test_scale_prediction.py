"""Predictions against closed forms, a real engine's tensors, and what DeepSpeed really sends."""

import gc
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from spawn import run_on_ranks
from torch._subclasses.fake_tensor import FakeTensor

from attvae.config import load
from attvae.engine import rendezvous
from attvae.engine.batch import BatchPlan, divide
from attvae.engine.config import EngineConfig
from attvae.model.vae import DeepVAE
from attvae.rehearsal import Rehearsal
from attvae.scale import (
    Cluster,
    Collective,
    Layout,
    Link,
    Workload,
    collectives,
    efficiency,
    memory,
    predict,
    read_cluster,
    seconds_of,
    sent_bytes,
    shared,
    worlds,
)
from attvae.spec import DataSpec

TINY = Path(__file__).parents[1] / "configs" / "test" / "tiny.yaml"
DIGITS = DataSpec(height=8, width=8, channels=1, num_bits=8, max_value=16, binary=True)
PSI = 10**8
WORK = Workload(PSI, flops_per_image=3e11, kept_per_image=4e8, kept_per_pass=10**8, stored_per_image=13_312)
STAGES = [0, 1, 2, 3]


def engine(stage: int, **settings: Any) -> EngineConfig:
    return EngineConfig(stage=stage, precision="fp32", **settings)


def large(stage: int, accumulation: int = 1) -> list[Collective]:
    return collectives(engine(stage), PSI, accumulation)[:-1]  # the last are the agreements


# ---------------------------------------------------------------------------------------------------------- volumes


@pytest.mark.parametrize(("stage", "times"), [(0, 2), (1, 3), (2, 3), (3, 2)])
@pytest.mark.parametrize("ranks", [2, 8, 1000])
def test_what_a_rank_sends(stage: int, times: int, ranks: int) -> None:
    """Rings send (N-1)/N of the tensor, an all-reduce twice; 4 bytes a parameter."""
    sent = sum(sent_bytes(each, ranks) for each in large(stage))
    assert sent == pytest.approx(times * (ranks - 1) / ranks * 4 * PSI)


def test_accumulation_costs_stages_2_and_3_a_reduction_each() -> None:
    sent = {stage: [sum(sent_bytes(c, 2) for c in large(stage, n)) / (4 * PSI) for n in (1, 5)] for stage in STAGES}
    assert sent == {0: [1, 1], 1: [1.5, 1.5], 2: [1.5, 5.5], 3: [1, 5]}


def test_parameters_of_two_bytes_are_gathered_as_such() -> None:
    assert [each.size for each in collectives(EngineConfig(stage=2, precision="bf16"), PSI, 1)[:2]] == [4e8, 2e8]


def test_a_model_too_large_to_stay_is_gathered_twice() -> None:
    """Rajbhandari et al. 2020, section 7.2: 3 times the parameters, once they are released after the forward pass."""
    huge = 2 * 10**9
    assert sum(sent_bytes(each, 10**6) for each in collectives(engine(3), huge, 1)) == pytest.approx(3 * 4 * huge)


# ------------------------------------------------------------------------------------------------- held by an engine


def held_bytes() -> int:
    """Of all tensors that Python knows of, every storage once; torch.compile's have none."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    tensors = [each for each in tensors if not isinstance(each, FakeTensor)]
    tensors += [each.grad for each in tensors if each.is_leaf and each.grad is not None]
    storages = [each.untyped_storage() for each in tensors if each.device.type == "cpu"]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


class Counted(NamedTuple):
    sent: dict[str, int]
    """Elements of the collectives of an update, those of a few numbers left out."""
    held: int
    """Bytes between two updates."""


def zero_engines(stages: list[int], accumulation: int) -> list[Counted]:
    world = rendezvous.join()
    elements: dict[str, int] = defaultdict(int)

    def count(name: str, position: int) -> None:
        real = getattr(dist, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            tensor = [*args, *kwargs.values()][position]
            if tensor.numel() > 100:
                elements[name] += tensor.numel()
            return real(*args, **kwargs)

        setattr(dist, name, counting)

    for name in ("all_reduce", "all_gather_into_tensor", "reduce", "broadcast"):
        count(name, 0)
    count("reduce_scatter_tensor", 1)
    found = []
    try:
        for stage in stages:
            before = held_bytes()
            cfg = load(TINY, ["model.norm=none", "engine.persistent_parameters=0", f"engine.stage={stage}"])
            run = Rehearsal(cfg, DIGITS, world, BatchPlan(4, accumulation))
            for _ in range(3):  # stage 3 learns the order of the modules in its first updates
                elements.clear()
                run.train_step()
            found.append(Counted(dict(elements), held_bytes() - before))
            del run
    finally:
        rendezvous.leave()
    return found


@pytest.mark.slow
def test_real_engines_send_and_hold_what_is_predicted() -> None:
    accumulation = 2
    with torch.device("meta"):
        parameters = sum(p.numel() for p in DeepVAE(load(TINY, ["model.norm=none"]).model, DIGITS).parameters())
    for stage, found in zip(STAGES, run_on_ranks(zero_engines, 2, STAGES, accumulation)[0], strict=True):
        names = {"all_gather": "all_gather_into_tensor", "reduce_scatter": "reduce_scatter_tensor"}
        expected = {
            names.get(each.kind, each.kind): each.size / 4
            for each in collectives(engine(stage), parameters, accumulation)[:-1]
        }
        assert found.sent == pytest.approx(expected, rel=1e-3), f"stage {stage}"  # partitions are padded
        peak = memory(engine(stage), WORK._replace(parameters=parameters), 2, 1)
        between = peak.parameters + peak.masters + peak.optimizer + peak.average
        if stage == 3:  # whose buffers stay
            between += peak.gradients + peak.buckets
        assert found.held == pytest.approx(between, abs=0.02 * 4 * parameters), f"stage {stage}"


def test_the_plain_engine_holds_what_is_predicted() -> None:
    before = held_bytes()
    cfg = load(TINY, ["engine.name=plain"])
    world = rendezvous.join()
    try:
        run = Rehearsal(cfg, DIGITS, world, BatchPlan(4, 1))
        run.train_step()
        found = held_bytes() - before
    finally:
        rendezvous.leave()
    parameters = sum(p.numel() for p in run._averaged.parameters())
    predicted = memory(cfg.engine, WORK._replace(parameters=parameters), 1, 1)
    assert predicted.buckets == 0
    assert found == pytest.approx(predicted.states + predicted.average, abs=0.02 * 4 * parameters)


# ----------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("ranks", [1, 16, 1024])
def test_states_by_stage(ranks: int) -> None:
    """16 bytes a parameter and the average: what a stage partitions is divided by the ranks, and has a master copy."""
    own = 1 / ranks
    per_parameter = [memory(engine(stage), WORK, ranks, 64).states / PSI for stage in STAGES]
    assert per_parameter == pytest.approx([20, 8 + 20 * own, 4 + 20 * own, 24 * own])


def test_half_precision_and_offloading() -> None:
    bf16 = memory(EngineConfig(stage=3, precision="bf16"), WORK, 4, 1)
    assert (bf16.parameters, bf16.gathered, bf16.masters) == (2 * PSI / 4, 2 * PSI, PSI)
    offloaded = memory(engine(3, offload_optimizer=True, offload_parameters=True), WORK, 4, 1)
    assert offloaded.parameters == offloaded.masters == offloaded.optimizer == 0
    assert offloaded.gathered == 4 * PSI


def test_activations_follow_the_micro_batch() -> None:
    assert memory(engine(1), WORK, 2, 7).activations == 7 * 4e8 + 1e8


# ------------------------------------------------------------------------------------------------------------- time

CLUSTER = Cluster(inside=Link(gb_per_s=100, latency_us=5), between=Link(gb_per_s=10, latency_us=20), read_gb_per_s=2)


def test_time_of_collectives_by_hand() -> None:
    reduce, gather = large(1)
    assert (reduce.kind, gather.kind, reduce.calls, gather.calls) == ("all_reduce", "all_gather", 2, 2)
    on_a_node = Layout(8, 8)
    assert seconds_of(reduce, on_a_node, CLUSTER) == pytest.approx(2 * 7 / 8 * 4e8 / 100e9 + 2 * 14 * 5e-6)
    assert seconds_of(gather, on_a_node, CLUSTER) == pytest.approx(7 / 8 * 4e8 / 100e9 + 2 * 7 * 5e-6)
    on_nodes = Layout(32, 8)  # four of them: trees of depth 2 between, rings through 8 cards of 10 GB/s
    sent_s = 31 / 32 * 4e8 / 80e9
    assert seconds_of(reduce, on_nodes, CLUSTER) == pytest.approx(2 * sent_s + 2 * (14 * 5e-6 + 4 * 20e-6))
    assert seconds_of(gather, on_nodes, CLUSTER) == pytest.approx(sent_s + 2 * (28 * 5e-6 + 3 * 20e-6))
    assert seconds_of(reduce, Layout(1, 8), CLUSTER) == 0


def test_an_update_by_hand() -> None:
    update = predict(engine(0), WORK, BatchPlan(32, 2), Layout(1, 8), CLUSTER, tflops=100)
    assert update.compute_s == pytest.approx(64 * 3e11 / 1e14)
    assert update.update_s == pytest.approx(1e8 * 100 / 3.35e12)
    assert update.communication_s == 0
    assert update.read_s == pytest.approx(64 * 13_312 / 2e9)
    assert update.seconds == update.compute_s + update.update_s
    assert update.images_per_s == pytest.approx(64 / update.seconds)


def test_slow_disks_bound_the_update() -> None:
    slow = CLUSTER.model_copy(update={"read_gb_per_s": 0.01})
    update = predict(engine(0), WORK, BatchPlan(32, 2), Layout(16, 8), slow, tflops=100)
    assert update.seconds == update.read_s == pytest.approx(8 * 64 * 13_312 / 1e7)


@pytest.mark.parametrize("stage", STAGES)
def test_efficiency(stage: int) -> None:
    def of(ranks: int, cluster: Cluster) -> float:
        alone, many = (predict(engine(stage), WORK, BatchPlan(8, 1), Layout(n, 8), cluster, 200) for n in (1, ranks))
        return efficiency(many, alone, ranks)

    # An update that costs nothing: partitioning it is a gain that would outweigh a little communication.
    free = Cluster(memory_gb_per_s=1e12)
    found = [of(ranks, free) for ranks in worlds(24)]
    assert found[0] == 1
    assert found == sorted(found, reverse=True)
    assert 0 < found[-1] < found[1] < 1
    ideal = Cluster(inside=Link(gb_per_s=1e9, latency_us=0), between=Link(gb_per_s=1e9, latency_us=0))
    assert of(1024, ideal) == pytest.approx(1 if stage == 0 else 1 + 100 * PSI / 3.35e12 / (8 * 3e11 / 2e14), rel=1e-3)


def test_parts_of_a_global_batch() -> None:
    for ranks in (1, 2, 8, 16):
        part = shared(512, ranks, 64)
        assert part == divide(512, ranks, min(64, 512 // ranks))
    assert shared(512, 512, 64) == BatchPlan(1, 1)
    assert shared(90, 1, 64) == BatchPlan(45, 2)


def test_worlds() -> None:
    assert worlds(128) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert worlds(24)[4:7] == [16, 24, 32]


# -------------------------------------------------------------------------------------------------------- constants


def test_constants_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("gpu: NVIDIA A100-SXM4-80GB\ninside: {gb_per_s: 240, latency_us: 4}\n")
    found = read_cluster(file)
    assert (found.gpu, found.inside.gb_per_s) == ("NVIDIA A100-SXM4-80GB", 240)
    assert found.between == Cluster().between


@pytest.mark.parametrize(
    ("text", "said"),
    [("nvlink: 3", "nvlink"), ("read_gb_per_s: 0", "read_gb_per_s"), ("inside: {latency_us: 3}", "inside.gb_per_s")],
)
def test_wrong_constants_are_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"cluster.yaml: {said}.*known are gpu, memory_gb"):
        read_cluster(file)
