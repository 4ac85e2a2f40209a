"""What a run needs and how fast it is on a cluster, predicted from constants. Pure: imports no torch.

Bytes, FLOPs and seconds throughout; `Cluster` alone has the units of data sheets. The method, with the formulas and
where they come from, is docs/scale.md.
"""

import math
from pathlib import Path
from typing import Literal, NamedTuple

import yaml
from pydantic import Field, ValidationError

from attvae.engine.batch import BatchPlan
from attvae.engine.config import EngineConfig
from attvae.engine.deepspeed_config import deepspeed_config
from attvae.spec import Config

FP32 = 4
AGREEMENTS = 4
"""Sums of a few numbers over all ranks in every update: images there, gradient norm, overflow, decision."""

UPDATE_BYTES = 100
"""Of memory traffic for a parameter's update: norm, penalty, Adamax and EMA in separate passes, in fp32."""

STAGE_0_BUCKET = 500_000_000
"""Elements of a reduction in stage 0, DeepSpeed's constant MEMORY_OPT_ALLREDUCE_SIZE."""


class Link(Config):
    """One direction of what a GPU sends and receives over."""

    gb_per_s: float = Field(gt=0, description="10^9 bytes a second that a large collective reaches, not the line rate")
    latency_us: float = Field(ge=0, description="of one step of a ring or tree")


class Cluster(Config):
    """One kind of node: the constants of a prediction. The defaults are a node of H100 SXM with InfiniBand NDR."""

    gpu: str = Field("NVIDIA H100 80GB HBM3", description="a name in attvae.engine.throughput.PEAK_TFLOPS")
    memory_gb: float = Field(80.0, gt=0, description="of a GPU, in 10^9 bytes")
    memory_gb_per_s: float = Field(3350.0, gt=0, description="that a GPU reads from its memory")
    mfu: float = Field(0.2, gt=0, le=1, description="assumed part of the peak that forward and backward pass reach")
    tflops: float | None = Field(None, gt=0, description="model TFLOP/s of a GPU as measured, in place of mfu x peak")
    inside: Link = Field(Link(gb_per_s=360.0, latency_us=4.0), description="NVLink 4: 80 % of 450 GB/s")
    between: Link = Field(
        Link(gb_per_s=40.0, latency_us=14.0), description="of each GPU's own card: 80 % of 400 Gbit/s"
    )
    read_gb_per_s: float = Field(1.0, gt=0, description="of shards, by all ranks of a node together")


class Layout(NamedTuple):
    """Where the ranks are: nodes are filled one after the other."""

    ranks: int
    gpus_per_node: int

    @property
    def nodes(self) -> int:
        return -(-self.ranks // self.gpus_per_node)

    @property
    def ranks_per_node(self) -> int:
        return min(self.ranks, self.gpus_per_node)


class Workload(NamedTuple):
    """What a prediction has to know of model and data."""

    parameters: int
    flops_per_image: float
    """Model FLOPs, forward and backward."""
    kept_per_image: float
    """Bytes between forward and backward pass."""
    kept_per_pass: int
    """The same, however many images."""
    stored_per_image: float
    """Bytes in the shards."""


class Memory(NamedTuple):
    """Bytes on one GPU at the peak of an update."""

    parameters: float
    gathered: float
    """Stage 3: parameters in use, as whole as the others have them."""
    gradients: float
    masters: float
    """fp32 parameters that the optimizer updates; DeepSpeed keeps a part of them beside fp32 parameters too."""
    optimizer: float
    """Two moments and the EMA."""
    average: float
    """The model for looking at the EMA weights."""
    buckets: float
    """Gradients on their way through a reduction."""
    activations: float

    @property
    def total(self) -> float:
        return sum(self)

    @property
    def states(self) -> float:
        """What ZeRO partitions: parameters, gradients, masters and optimizer states."""
        return self.parameters + self.gradients + self.masters + self.optimizer


class Collective(NamedTuple):
    """All collectives of one kind in an update."""

    kind: Literal["all_reduce", "all_gather", "reduce_scatter"]
    size: float
    """Bytes of the whole tensors, of all calls together."""
    calls: int


class Update(NamedTuple):
    """The parts of an update in seconds, one after the other but for the reading."""

    images: int
    compute_s: float
    update_s: float
    communication_s: float
    read_s: float
    """While the GPUs work: it counts when it takes longer than they do."""

    @property
    def seconds(self) -> float:
        return max(self.compute_s + self.update_s + self.communication_s, self.read_s)

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds


def read_cluster(path: Path) -> Cluster:
    """
    Raises:
        ValueError: the file is no YAML of the keys of Cluster.
    """
    try:
        return Cluster.model_validate(yaml.safe_load(path.read_text()) or {})
    except OSError as error:
        raise ValueError(f"cannot read the constants {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors())
        raise ValueError(f"{path}: {problems}; known are {', '.join(Cluster.model_fields)}") from None


def stage_of(engine: EngineConfig) -> int:
    """The ZeRO stage; the plain engine holds and sends what stage 0 does."""
    return engine.stage if engine.name == "zero" else 0


def memory(engine: EngineConfig, work: Workload, ranks: int, micro_batch: int) -> Memory:
    """Bytes on one GPU (Rajbhandari et al. 2020, section 5, with what DeepSpeed holds beside: docs/scale.md)."""
    stage, count = stage_of(engine), work.parameters
    own = count / ranks
    width = _parameter_bytes(engine)
    masters = own * FP32 if stage else 0.0
    optimizer = 3 * FP32 * (own if stage else count)
    gradients = {0: count, 1: count + own, 2: own, 3: own}[stage] * FP32
    at_once = _zero(engine)["reduce_bucket_size"] if stage else min(count, STAGE_0_BUCKET)
    return Memory(
        parameters=0.0 if engine.offload_parameters else width * (own if stage == 3 else count),
        gathered=width * min(count, _zero(engine)["stage3_max_live_parameters"]) if stage == 3 else 0.0,
        gradients=gradients,
        masters=0.0 if engine.offload_optimizer else masters,
        optimizer=0.0 if engine.offload_optimizer else optimizer,
        average=count * FP32,
        buckets=at_once * FP32 if stage or ranks > 1 else 0.0,
        activations=micro_batch * work.kept_per_image + work.kept_per_pass,
    )


def collectives(engine: EngineConfig, parameters: int, accumulation: int) -> list[Collective]:
    """What the engines send in an update, as DeepSpeed 0.19 does with our configuration."""
    stage = stage_of(engine)
    gradients, weights = FP32 * parameters, _parameter_bytes(engine) * parameters
    sent: list[Collective]
    match stage:
        case 0:
            sent = [Collective("all_reduce", gradients, -(-parameters // STAGE_0_BUCKET))]
        case 1 | 2:
            # Stage 2 has nowhere to accumulate whole gradients: it reduces those of every micro-batch.
            times = accumulation if stage == 2 else 1
            buckets = -(-parameters // _zero(engine)["reduce_bucket_size"])
            gathers = -(-parameters // _zero(engine)["allgather_bucket_size"])
            sent = [
                Collective("all_reduce", times * gradients, times * buckets),
                Collective("all_gather", weights, gathers),
            ]
        case _:
            zero = _zero(engine)
            # A parameter that comes again soon enough is not released between forward and backward pass.
            gathers = 1 if parameters <= zero["stage3_max_reuse_distance"] else 2
            fetches = -(-parameters // zero["stage3_prefetch_bucket_size"])
            buckets = -(-parameters // zero["reduce_bucket_size"])
            sent = [
                Collective("all_gather", accumulation * gathers * weights, accumulation * gathers * fetches),
                Collective("reduce_scatter", accumulation * gradients, accumulation * buckets),
            ]
    return [*sent, Collective("all_reduce", FP32 * AGREEMENTS, AGREEMENTS)]


def sent_bytes(collective: Collective, ranks: int) -> float:
    """Bytes that each rank sends in rings (Patarasuk & Yuan 2009): an all-reduce is a reduce-scatter and a gather."""
    passes = 2 if collective.kind == "all_reduce" else 1
    return passes * (ranks - 1) / ranks * collective.size


def seconds_of(collective: Collective, layout: Layout, cluster: Cluster) -> float:
    """Time of a collective in which all ranks take part: bytes over the bandwidth, and steps times the latency.

    Over several nodes each GPU has a ring of its own through its own card, so that all cards of a node work.
    """
    if layout.ranks == 1:
        return 0.0
    nodes, here = layout.nodes, layout.ranks_per_node
    bandwidth = cluster.inside.gb_per_s * 1e9
    if nodes > 1:
        bandwidth = min(bandwidth, here * cluster.between.gb_per_s * 1e9)
    if collective.kind == "all_reduce":  # a tree, up and down
        inside, between = 2 * (here - 1), 2 * math.ceil(math.log2(nodes))
    else:  # a ring
        inside, between = layout.ranks - nodes, nodes - 1
    latency = (inside * cluster.inside.latency_us + between * cluster.between.latency_us) / 1e6
    return sent_bytes(collective, layout.ranks) / bandwidth + collective.calls * latency


def predict(
    engine: EngineConfig, work: Workload, batch: BatchPlan, layout: Layout, cluster: Cluster, tflops: float
) -> Update:
    """One update. Nothing overlaps but the reading: `overlap_comm` is off in `deepspeed_config`.

    Args:
        batch: images of a rank.
        tflops: model TFLOP/s that one GPU reaches in the forward and backward pass.
    """
    images = batch.micro_batch * batch.accumulation
    updated = work.parameters / (layout.ranks if stage_of(engine) else 1)
    return Update(
        images=images * layout.ranks,
        compute_s=images * work.flops_per_image / (tflops * 1e12),
        update_s=updated * UPDATE_BYTES / (cluster.memory_gb_per_s * 1e9),
        communication_s=sum(
            seconds_of(each, layout, cluster) for each in collectives(engine, work.parameters, batch.accumulation)
        ),
        read_s=images * layout.ranks_per_node * work.stored_per_image / (cluster.read_gb_per_s * 1e9),
    )


def efficiency(update: Update, alone: Update, ranks: int) -> float:
    """Images a second and rank, as a part of those of a rank alone."""
    return update.images_per_s / (ranks * alone.images_per_s)


def shared(global_batch: int, ranks: int, micro_batch: int) -> BatchPlan:
    """A rank's part of a global batch that the ranks divide, in the largest equal micro-batches up to `micro_batch`."""
    images = global_batch // ranks
    accumulation = next(n for n in range(-(-images // micro_batch), images + 1) if images % n == 0)
    return BatchPlan(images // accumulation, accumulation)


def worlds(asked: int) -> list[int]:
    """1, 2, 4 ... 1024, and the number asked for."""
    return sorted({*(2**k for k in range(11)), asked})


def _parameter_bytes(engine: EngineConfig) -> int:
    return 2 if engine.precision in ("bf16", "fp16") else FP32


def _zero(engine: EngineConfig) -> dict[str, int]:
    config: dict[str, int] = deepspeed_config(engine, BatchPlan(1, 1), 1)["zero_optimization"]
    return config
