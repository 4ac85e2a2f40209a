"""The numbers of a report, as tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attvae.pages.document import table
from attvae.pages.figures import MISSING, figure
from attvae.tracking.run import Run

_SPLITS = {
    "test": "test",
    "val": "validation",
    "test_without_depth_attention": "test, depth-wise attention switched off",
}
_DURING = {"val/nelbo_nats": "NELBO, nats", "val/nll_nats": "NLL, nats", "val/kl_nats": "KL, nats"}
_PATHS = {"decoder": "Generative path", "encoder": "Inference path"}


def with_error(value: float | None, error: float | None) -> str:
    """Older runs have no standard errors; neither has a single image."""
    return figure(value) if value is None or error is None else f"{figure(value)} {plus_minus(error)}"


def plus_minus(error: float) -> str:
    return f"± {error:.4f}" if error >= 5e-5 else f"± {error:.1g}"


def final_figures(summary: Mapping[str, Any]) -> str:
    columns = ("images", "NELBO, nats", "bits/dim", "NLL, nats", "KL, nats", "number", "draws of each")
    rows = []
    for split, name in _SPLITS.items():
        if (found := summary.get(split)) is None:
            continue
        errors = found.get("standard_error", {})
        cells = (with_error(found[key], errors.get(key)) for key in ("nelbo_nats", "bits_per_dim", "nll_nats"))
        kl = figure(sum(found["kl_nats_per_layer"]))
        rows.append((name, *cells, kl, f"{found['images']:,}", figure(found.get("draws"))))
    for codec, bits in summary.get("codecs_bits_per_dim", {}).items():
        rows.append((f"test, {codec}", MISSING, figure(bits), *(MISSING,) * 4))
    return table("Figures of the trained model", columns, rows)


def newest_figures(run: Run) -> str:
    """Those of an unfinished run; empty if it has none yet."""
    metrics = {**_DURING, "val/bits_per_dim": "bits/dim", "train/nelbo_nats": "training NELBO, nats"}
    newest = {title: points[-1] for metric, title in metrics.items() if (points := run.series(metric))}
    rows = [(title, figure(point.value), f"{point.samples_seen:,}") for title, point in newest.items()]
    return table("The newest figures of the training", ("figure", "value", "at samples seen"), rows) if rows else ""


def layers(summary: Mapping[str, Any], during: Sequence[float], looked: Mapping[str, Any]) -> str:
    """KL beside active units, and what the layer adds.

    Args:
        summary: empty of an unfinished run.
        during: the KL of each layer during the training, where there is no summary.
        looked: figures.json, or nothing.
    """
    test = summary.get("test", {})
    kl = test.get("kl_nats_per_layer", during)
    errors = test.get("standard_error", {}).get("kl_nats_per_layer", [None] * len(kl))
    units = (test.get("active_units") or {}).get("per_layer", [])
    top = looked.get("top_layers", {})
    bits = dict(zip(top.get("inferred_layers", []), top.get("bits_per_dim", []), strict=True))
    variance = looked.get("resampling", {}).get("variance_per_layer", [])
    columns = ["layer", "KL, nats", "of all KL"]
    columns += ["active units", "of these\nundecided"] if units else []
    columns += ["bits/dim with the\nlayers below unknown"] if bits else []
    columns += ["pixel variance\nif drawn anew"] if variance else []
    total = sum(kl)
    rows = []
    if bits:
        nothing_known = [MISSING] * (4 if units else 2)
        rows.append(["none", *nothing_known, figure(bits.get(0)), *([MISSING] if variance else [])])
    for layer, value in enumerate(kl):
        row = [str(layer), with_error(value, errors[layer]), f"{value / total:.1%}" if total > 0 else MISSING]
        if units:
            row += [f"{units[layer]['active']:,} of {units[layer]['units']:,}", f"{units[layer]['undecided']:,}"]
        row += [figure(bits.get(layer + 1))] if bits else []
        row += [figure(variance[layer])] if variance else []
        rows.append(row)
    return table("The layers, 0 on top", columns, rows)


def attention(looked: Mapping[str, Any], gates: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """For each path that attends: its title, and tables of its layers and of the matrix."""
    switched = {
        (each["path"], each["layer"]): each for each in looked.get("most_attended_switched_off", {}).get("layers", [])
    }
    columns = (
        "layer", "to choose\nfrom", "entropy,\nnats", "of the\nlargest", "effective\nnumber", "distance,\nlayers",
        "beyond the\nnearest", "attends most\nto", "by a\nshare of", "gate γ", "without that:\nNELBO rises by, nats",
    )  # fmt: skip
    for path, title in _PATHS.items():
        found = looked["depth_attention"].get(path)
        if not found or not found["layers"]:
            continue
        rows = []
        for each in found["layers"]:
            off = switched.get((path, each["layer"]), {})
            gate = gates.get(f"{path}/layer_{each['layer']:02d}")
            rows.append(
                (
                    str(each["layer"]),
                    str(each["contexts"]),
                    figure(each["entropy_nats"]),
                    _share(each["relative_entropy"]),
                    f"{each['effective_contexts']:.2f}",
                    f"{each['distance']:.2f}",
                    _share(each["share_beyond_nearest"]),
                    str(each["most_attended"]),
                    _share(each["share_of_most_attended"]),
                    figure(gate),
                    with_error(off.get("nelbo_change_nats"), off.get("standard_error")),
                )
            )
        yield title, table(f"Attention of the {title.lower()}", columns, rows) + _matrix(path, title, found)


def _matrix(path: str, title: str, found: Mapping[str, Any]) -> str:
    alpha = found["alpha"]
    attending = {each["layer"] for each in found["layers"]}

    def there(layer: int, m: int) -> bool:
        return m < layer if path == "decoder" else m >= layer

    rows = [
        (f"layer {layer}", *(f"{value:.3f}" if there(layer, m) else MISSING for m, value in enumerate(row)))
        for layer, row in enumerate(alpha)
        if layer in attending
    ]
    columns = ("attends to", *map(str, range(len(alpha[0]))))
    shown = table(f"α of the {title.lower()}", columns, rows)
    return f"<details><summary>α(m→l) as numbers</summary>{shown}</details>"


def spatial(looked: Mapping[str, Any]) -> str:
    columns = ("block", "pixels", "entropy, nats", "of the\nlargest", "effective\npixels", "peak over\nuniform")
    rows = [
        (
            each["block"],
            f"{each['pixels']:,}",
            figure(each["entropy_nats"]),
            _share(each["relative_entropy"]),
            f"{each['effective_pixels']:.1f}",
            f"{each['peak_over_uniform']:.2f}",
        )
        for each in looked["spatial_attention"]["blocks"]
    ]
    return table("Attention of the non-local blocks", columns, rows)


def nearest(looked: Mapping[str, Any]) -> str:
    found = looked["nearest_images"]
    rows = [
        (
            name,
            with_error(each["mean"], each["standard_error"]),
            figure(each["median"]),
            figure(each["min"]),
            str(each["identical"]),
        )
        for name, each in (("samples", found["samples"]), ("images held out", found["test_images"]))
    ]
    return table("Distance to the nearest training image", ("of", "mean", "median", "least", "copies"), rows)


def facts(label: str, found: Mapping[str, object]) -> str:
    """Names and values; those that are not known left out."""
    rows = [(name, str(value)) for name, value in found.items() if value not in (None, "")]
    return table(label, ("property", "value"), rows)


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1%}"
