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
    text = json.dumps(deepspeed_config(cfg.engine, batch, ranks), indent=1)
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
    if folder.report.is_file():  # not of runs from before, or where it could not be made
        print(f"all on one page: {folder.report}")
    if cfg.tracking.mlflow:
        print(f"compare runs: {cfg.tracking.ui_command()}")


def show_figures(name: str, figures: dict[str, Any]) -> None:
    """The table of the figures of `summary.json`."""
    rows = []
    for split, title in (
        ("test", "test NELBO"),
        ("val", "validation NELBO"),
        ("test_without_depth_attention", "test NELBO without depth-wise attention"),
    ):
        if split in figures:
            found, errors = figures[split], _errors(figures[split])
            nats, bits = found["nelbo_nats"], found["bits_per_dim"]
            rows.append(_row(title, (nats, errors.get("nelbo_nats")), (bits, errors.get("bits_per_dim"))))
    test, errors = figures["test"], _errors(figures["test"])
    rows.append(_row("test NLL", (test["nll_nats"], errors.get("nll_nats"))))
    layers = test["kl_nats_per_layer"]
    for i, each in enumerate(zip(layers, errors.get("kl_nats_per_layer", [None] * len(layers)), strict=True)):
        rows.append(_row(f"test KL of layer {i}", each))
    rows += [
        _row(f"{codec}, the same images", bits=(b, None)) for codec, b in figures.get("codecs_bits_per_dim", {}).items()
    ]
    print_table(f"{name} (EMA weights, {_images(test)})", _COLUMNS, rows)
    _show_active_units(test.get("active_units"))
    if figures["attention_gates"]:
        gates = [(layer, gate) for layer, gate in figures["attention_gates"].items()]
        print_table("gates γ of the depth-wise attention (0: switched off)", ("path/layer", "γ"), gates)


def show_evaluation(report: dict[str, Any]) -> None:
    """The tables of what `attvae evaluate` reports."""
    model, data, figures, split = (report[name] for name in ("model", "data", "figures", "split"))
    mark = " (forced)" if report["forced"] else ""

    def row(title: str, nats: str, bits: str | None = None) -> tuple[str, ...]:
        return _row(f"{title}{mark}", _value(figures[nats]), _value(figures[bits]) if bits else None)

    rows = [row(f"{split} NELBO", "nelbo_nats", "bits_per_dim")]
    if figures["iw_nll_nats"]:
        rows.append(row(f"{split} importance-weighted bound, K = {report['iw']:,}", "iw_nll_nats", "iw_bits_per_dim"))
    rows += [row(f"{split} NLL", "nll_nats"), row(f"{split} KL", "kl_nats")]
    rows += [_row(f"{split} KL of layer {kl['layer']}{mark}", _value(kl)) for kl in figures["kl_nats_per_layer"]]
    weights = {"ema": "EMA weights", "parameters": "plain weights"}[model["weights"]]
    at = "" if model["samples_seen"] is None else f" at {model['samples_seen']:,} samples"
    print_table(f"{model['path']}{at}", _COLUMNS, rows)
    print(f"{weights}; {data['name']} {data['version']}, {_images(report)}, seed {report['seed']}; ±: standard error")
    _show_active_units(figures["active_units"], mark)
    if report["features"]:
        _show_quality(report, mark)
    for reason in report["forced"]:
        print(f"forced: {reason}")


def _show_quality(report: dict[str, Any], mark: str) -> None:
    features, figures = report["features"], report["figures"]
    title = f"{features['samples']:,} samples against {features['images']:,} images of {report['split']}"
    rows = []
    for name, label in (
        ("frechet_distance", "Fréchet distance"),
        ("precision", f"precision, k = {features['neighbours']}"),
        ("recall", f"recall, k = {features['neighbours']}"),
    ):
        value, error = _value(figures[name])
        rows.append((f"{label}{mark}", f"{value:,.4f}", "" if error is None else f"{error:,.4f}"))
    print_table(title, ("", "", "±"), rows)
    print(
        f"{features['dimensions']:,} features of {features['network']} (SHA-256 {features['sha256'][:12]}…), "
        f"temperature {features['temperature']:g}"
    )
    if min(features["samples"], features["images"]) <= features["dimensions"]:
        print("fewer images than features: the Fréchet distance is far too large, and comparable at equal numbers only")


_COLUMNS = ("", "nats", "±", "bits/dim", "±")
"""± is the standard error of the mean over images."""


def _row(
    title: str, nats: tuple[float, float | None] | None = None, bits: tuple[float, float | None] | None = None
) -> tuple[str, ...]:
    cells = [*(nats or (None, None)), *(bits or (None, None))]
    return (title, *("" if each is None else f"{each:,.4f}" for each in cells))


def _value(figure: dict[str, Any]) -> tuple[float, float | None]:
    return figure["value"], figure["standard_error"]


def _errors(figures: dict[str, Any]) -> dict[str, Any]:
    """Runs of before had none."""
    return figures.get("standard_error", {})


def _images(figures: dict[str, Any]) -> str:
    draws = figures.get("draws", 1)
    return f"{figures['images']:,} images" + (f", {draws:,} draws of each" if draws > 1 else "")


def _show_active_units(found: dict[str, Any] | None, mark: str = "") -> None:
    if found is None:
        return
    rows = [
        (f"layer {each['layer']}{mark}", each["active"], each["undecided"], each["units"])
        for each in found["per_layer"]
    ]
    rows.append((f"all{mark}", found["value"], found["undecided"], found["units"]))
    print_table(f"active units: {found['share']:.1%}", ("", "active", "undecided", "of"), rows)
    print(f"active: the variance of the posterior mean over the images is above {found['variance_above']:g}")


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
