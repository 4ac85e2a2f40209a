"""What a run needs and how fast it would be on a cluster, on a terminal of any machine: the rest of a dry run."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from attvae import scale
from attvae.config import RunConfig
from attvae.data.manifest import Manifest
from attvae.engine.batch import BatchPlan
from attvae.engine.config import EngineConfig
from attvae.engine.throughput import published_tflops
from attvae.model.flops import training_flops
from attvae.model.kept import kept_bytes
from attvae.run_folder import RunFolder
from attvae.scale import Cluster, Layout, Update, Workload
from attvae.spec import DataSpec
from attvae.tracking import jsonl
from attvae.tracking.console import print_table
from attvae.train import CHECKPOINT_BYTES, Plan

TAR_BYTES = 1024
"""Of an image in a shard beside its pixels: tar header, `.npy` header, padding."""

CPUS_PER_GPU = 8
"""For the loader's workers beside the rank."""


class Constants(NamedTuple):
    cluster: Cluster
    tflops: float
    """Model TFLOP/s of a GPU in the forward and backward pass."""
    source: str
    """In words, where that number comes from."""


def constants(cfg: RunConfig, file: Path | None, measured: Path | None) -> Constants:
    """What a prediction rests on.

    Args:
        file: YAML of the keys of Cluster; by default its defaults.
        measured: a run folder whose journal has the rate.

    Raises:
        ValueError: the file is not valid, the folder has no rate, or the GPU is unknown.
    """
    cluster = scale.read_cluster(file) if file else Cluster()
    if measured:
        journal = RunFolder(measured).journal
        rows = [row["perf/tflops"] for row in jsonl.read(journal) if "perf/tflops" in row]
        if not rows:
            raise ValueError(f"{journal} has no perf/tflops: name a run folder with a log line")
        rate = median(rows[1:] or rows)  # the first line has the warm-up
        return Constants(cluster, rate, f"measured by {measured}")
    if cluster.tflops:
        return Constants(cluster, cluster.tflops, "as stated")
    peak = published_tflops(cluster.gpu, cfg.engine.precision)
    if peak is None:
        raise ValueError(
            f"the peak of gpu={cluster.gpu!r} is unknown: state tflops, or take a name that torch gives to a GPU of "
            "attvae/engine/throughput.py, such as 'NVIDIA A100-SXM4-80GB'"
        )
    source = f"ASSUMED, {cluster.mfu:.0%} of {peak:g}; better: --measured RUN, of one GPU"
    return Constants(cluster, cluster.mfu * peak, source)


def show_scale(planned: Plan, ranks: int, gpus_per_node: int, assumed: Constants) -> None:
    """Memory by ZeRO stage, and the time of an update on any number of GPUs. Takes seconds: it runs the model."""
    layout, cluster = Layout(ranks, gpus_per_node), assumed.cluster
    cfg, batch, work = planned.cfg, planned.batch, workload(planned)
    print(
        f"checkpoint: {planned.parameters * CHECKPOINT_BYTES / 1e9:.2f} GB, of which {cfg.checkpoint.keep_last} are "
        f"kept; model: {work.flops_per_image / 1e9:,.1f} GFLOP an image, forward and backward"
    )
    _show_memory(cfg.engine, work, layout, batch, cluster)
    _show_speed(cfg, work, layout, batch, assumed)
    print(f"{assumed.tflops:,.1f} TFLOP/s a GPU: {assumed.source}")
    print(
        f"{cluster.gpu}; inside a node {_link(cluster.inside)}; between nodes {_link(cluster.between)} a GPU; reading "
        f"{cluster.read_gb_per_s:g} GB/s a node, {work.stored_per_image:,.0f} bytes an image. "
        "Method: docs/scale.md; your constants: --cluster FILE"
    )


def show_commands(
    config_file: Path, overrides: Sequence[str], out: Path | None, ranks: int, gpus_per_node: int
) -> None:
    """How each launcher starts the run."""
    nodes, gpus = ranks // gpus_per_node, gpus_per_node
    arguments = shlex.join([str(config_file), *overrides, *(["--out", str(out)] if out else [])])
    print("\nTo start it, one of these; launch/README.md has more")
    if nodes == 1:
        print(f"  deepspeed --num_gpus {gpus} launch/train.py {arguments}")
        print(f"  python launch/torchrun.py --standalone --nproc-per-node {gpus} launch/train.py {arguments}")
    else:
        print(f"  deepspeed --hostfile hostfile launch/train.py {arguments}")
        print(f"    (hostfile: {nodes} lines like those of launch/hostfile.example, with slots={gpus})")
        print(
            f"  python launch/torchrun.py --nnodes {nodes} --node-rank N --nproc-per-node {gpus} --master-addr HOST "
            f"launch/train.py {arguments}"
        )
        print(f"    (on each host, N from 0 to {nodes - 1}; HOST is that of N = 0)")
    print(
        f"  sbatch --nodes {nodes} --gpus-per-node {gpus} --cpus-per-task {CPUS_PER_GPU * gpus} launch/slurm.sbatch "
        f"{arguments}"
    )


def workload(planned: Plan) -> Workload:
    """Counts what a prediction has to know: a throwaway model runs forward, on the CPU."""
    cfg, manifest = planned.cfg, planned.manifest
    spec = manifest.spec if manifest else cfg.data.spec
    assert spec is not None, "a plan has one or the other"
    kept = kept_bytes(cfg.model, spec, cfg.engine.recompute, autocast=cfg.engine.precision != "fp32")
    return Workload(
        parameters=planned.parameters,
        flops_per_image=training_flops(cfg.model, spec, torch.device("cpu")),
        kept_per_image=kept.per_image,
        kept_per_pass=kept.per_pass,
        stored_per_image=_stored_bytes(manifest, spec),
    )


def _stored_bytes(manifest: Manifest | None, spec: DataSpec) -> float:
    """Of an image: as the shards are, or as raw pixels will be."""
    if manifest:
        return sum(shard.bytes for shard in manifest.shards("train")) / manifest.samples("train")
    return spec.dimensions * (1 if spec.num_bits <= 8 else 2) + TAR_BYTES


def _show_memory(engine: EngineConfig, work: Workload, layout: Layout, batch: BatchPlan, cluster: Cluster) -> None:
    own = scale.stage_of(engine)
    stages = [2, 3] if engine.precision in ("bf16", "fp16") else [0, 1, 2, 3]
    # What only another stage can do is left out of this one, as the configuration would demand.
    engines = [
        engine.model_copy(
            update={
                "name": "zero",
                "stage": stage,
                "offload_optimizer": engine.offload_optimizer and stage > 0,
                "offload_parameters": engine.offload_parameters and stage == 3,
            }
        )
        for stage in stages
    ]
    found = [scale.memory(each, work, layout.ranks, batch.micro_batch) for each in engines]
    names = {
        "parameters": "parameters",
        "gathered": "parameters, gathered for use",
        "gradients": "gradients",
        "masters": "parameters that the optimizer updates",
        "optimizer": "two moments and the EMA",
        "average": "model for looking at the EMA",
        "buckets": "buckets of a reduction",
        "activations": f"activations: {batch.micro_batch} x {work.kept_per_image / 1e9:.3f}, kernels "
        f"{work.kept_per_pass / 1e9:.3f}",
        "total": "together",
    }
    rows = [(name, *(f"{getattr(each, key) / 1e9:.2f}" for each in found)) for key, name in names.items()]
    rows.append((f"of {cluster.memory_gb:g} GB", *(f"{each.total / 1e9 / cluster.memory_gb:.0%}" for each in found)))
    columns = ("", *(f"stage {stage}{', this run' if stage == own else ''}" for stage in stages))
    print_table(f"GB on each of {layout.ranks} GPUs, by ZeRO stage", columns, rows)


def _show_speed(cfg: RunConfig, work: Workload, layout: Layout, batch: BatchPlan, assumed: Constants) -> None:
    def predicted(ranks: int, each: BatchPlan) -> Update:
        return scale.predict(
            cfg.engine, work, each, Layout(ranks, layout.gpus_per_node), assumed.cluster, assumed.tflops
        )

    def row(ranks: int, each: BatchPlan, alone: BatchPlan) -> tuple[str, ...]:
        update = predicted(ranks, each)
        parts = (update.seconds, update.compute_s, update.update_s, update.communication_s, update.read_s)
        return (
            f"{ranks:,}" + (" *" if ranks == layout.ranks else ""),
            f"{Layout(ranks, layout.gpus_per_node).nodes:,}",
            f"{each.micro_batch * each.accumulation} x {ranks:,}",
            *(f"{1000 * seconds:,.1f}" for seconds in parts),
            f"{update.images_per_s:,.0f}",
            f"{scale.efficiency(update, predicted(1, alone), ranks):.1%}",
            f"{cfg.train.samples / update.images_per_s / 3600:,.2f}",
        )

    columns = (
        *("GPUs", "nodes", "images", "step, ms", "compute", "update", "sending", "reading"),
        *("images/s", "efficiency", "hours"),
    )
    worlds = scale.worlds(layout.ranks)
    print_table(
        f"Predicted, {batch.micro_batch * batch.accumulation} images on each GPU (* this run)",
        columns,
        [row(ranks, batch, batch) for ranks in worlds],
    )
    images = cfg.train.global_batch
    alone = scale.shared(images, 1, batch.micro_batch)
    print_table(
        f"Predicted, {images:,} images in each update",
        columns,
        [row(ranks, scale.shared(images, ranks, batch.micro_batch), alone) for ranks in worlds if images % ranks == 0],
    )


def _link(link: scale.Link) -> str:
    return f"{link.gb_per_s:g} GB/s, {link.latency_us:g} µs"
