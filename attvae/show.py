"""What a run looks like on a terminal: its plan beforehand, its figures afterwards."""

import json
from typing import TYPE_CHECKING, Any

from attvae.config import RunConfig, load
from attvae.engine.batch import divide
from attvae.engine.deepspeed_config import deepspeed_config
from attvae.run_folder import RunFolder
from attvae.tracking.console import print_table

if TYPE_CHECKING:
    from attvae.train import Plan


def show_plan(planned: "Plan", ranks: int) -> None:
    """What `--dry-run` says."""
    cfg, manifest, batch, parameters, published_count = planned
    steps = -(-cfg.train.samples // cfg.train.global_batch)
    if manifest:
        spec, images = manifest.spec, manifest.samples("train")
        data = f"{manifest.name} {manifest.version}: {images:,} x {spec.height}x{spec.width}x{spec.channels}"
        length = f"{steps:,} ({cfg.train.samples / images:,.1f} epochs)"
    else:
        data, length = f"not there yet: prepare {cfg.data.path} first", f"{steps:,}"
    print_table(
        "The run, if it were started",
        ("", "value"),
        [
            ("data", data),
            ("trainable parameters", parameters),
            ("the same, as the paper's authors count", published_count),
            ("latent layers", cfg.model.num_layers),
            ("ranks", ranks),
            ("global batch", f"{batch.micro_batch} micro-batch x {batch.accumulation} accumulated x {ranks} ranks"),
            ("steps", length),
            ("engine", _engine(cfg)),
            ("device", _device(cfg)),
        ],
    )


def show_deepspeed_config(cfg: RunConfig, ranks: int) -> None:
    """What DeepSpeed gets, as a comment: with the configuration before it, still one YAML file."""
    if cfg.engine.name == "plain":
        return
    batch = divide(cfg.train.global_batch, ranks, cfg.engine.micro_batch)
    print(f"# What DeepSpeed gets on {ranks} rank{'s' if ranks > 1 else ''}:")
    text = json.dumps(deepspeed_config(cfg.engine, batch, ranks, clip_norm=cfg.train.clip_norm), indent=1)
    print("\n".join(f"# {line}" for line in text.splitlines()))


def show_run(folder: RunFolder) -> None:
    """The figures of a finished run, its pictures, and where to look further."""
    cfg = load(folder.config)
    summary = folder.read_summary()
    show_figures(str(folder.path), summary)
    print(f"finished: {summary['samples_seen']:,} samples in {summary['wall_s']:,.0f} s, {folder.summary}")
    for name in ("samples", "reconstructions"):
        for newest in sorted(folder.images.glob(f"{name}-*.png"))[-1:]:
            print(f"{name}: {newest}")
    if cfg.tracking.mlflow:
        print(f"compare runs: {cfg.tracking.ui_command()}")


def show_figures(name: str, figures: dict[str, Any]) -> None:
    """The table of the figures of `summary.json`."""
    rows: list[tuple[str, float | str, float | str]] = []
    for split, title in (
        ("test", "test NELBO"),
        ("val", "validation NELBO"),
        ("test_without_depth_attention", "test NELBO without depth-wise attention"),
    ):
        if split in figures:
            rows.append((title, figures[split]["nelbo_nats"], figures[split]["bits_per_dim"]))
    test = figures["test"]
    rows.append(("test NLL", test["nll_nats"], ""))
    rows += [(f"test KL of layer {i}", kl, "") for i, kl in enumerate(test["kl_nats_per_layer"])]
    rows += [(f"{codec}, the same images", "", bits) for codec, bits in figures.get("codecs_bits_per_dim", {}).items()]
    print_table(f"{name} (EMA weights, {test['images']:,} images)", ("", "nats", "bits/dim"), rows)
    if figures["attention_gates"]:
        gates = [(layer, gate) for layer, gate in figures["attention_gates"].items()]
        print_table("gates γ of the depth-wise attention (0: switched off)", ("path/layer", "γ"), gates)


def _device(cfg: RunConfig) -> str:
    from attvae.engine.rendezvous import device_of_this_rank, kind_of_device

    kind = kind_of_device(cfg.engine.device)
    try:
        device_of_this_rank(cfg.engine.device)
    except ValueError:
        return f"{kind}: one for each rank, which this machine has not"
    return kind


def _engine(cfg: RunConfig) -> str:
    engine = cfg.engine
    parts = [engine.name] + ([f"ZeRO stage {engine.stage}"] if engine.name == "zero" else []) + [engine.precision]
    parts += [f"{name} on the CPU" for name in ("optimizer", "parameters") if getattr(engine, f"offload_{name}")]
    parts += [f"recomputes {', '.join(engine.recompute)}"] if engine.recompute else []
    return ", ".join(parts + (["compiled"] if engine.compile else []))
