"""A run as one HTML file that needs nothing else: no network, no script."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from math import isfinite
from pathlib import Path
from typing import Any

from attvae.evaluation.active_units import ACTIVE_VARIANCE
from attvae.pages.curve_tiles import curve_tiles
from attvae.pages.document import Section, document
from attvae.pages.figures import duration, figure
from attvae.pages.layer_bars import bars, layer_kl
from attvae.report import origin, tables
from attvae.report.origin import wall_s
from attvae.report.pictures import of_training, seen
from attvae.report.subject import Looked, Subject
from attvae.tracking.run import Run

_STYLE = Path(__file__).with_name("style.css")

_MADE = ("samples.png", "nearest_images.png", "interpolations.png")
_KEPT = ("reconstructions.png", "top_layers.png", "resampling.png")
_ATTENTION = ("depth_attention.png", "depth_attention_maps_decoder.png", "depth_attention_maps_encoder.png")
_DURING = ("samples", "reconstructions", "layer_kl", "depth_attention")
_ENDED = {"RUNNING": "is still going", "KILLED": "was stopped", "FAILED": "failed", "FINISHED": "has no summary.json"}


def page(subject: Subject) -> str:
    run, looked = subject.run, subject.looked
    sections = [
        Section("figures", "Figures", _figures(subject)),
        *(_pictured(looked) if isinstance(looked, Looked) else _not_looked_at(run, looked)),
        *_layers(subject),
        *(_attention(looked, _gates(run)) if isinstance(looked, Looked) else ()),
        Section("curves", "Curves", curve_tiles([run], ["samples"]) if run.rows else "<p>None yet.</p>"),
        Section("data", "Data", origin.data(subject)),
        Section("machine", "Machine and versions", origin.machine(subject)),
        Section("configuration", "Configuration", origin.configuration(subject)),
        Section("again", "How to get this again", origin.commands(subject)),
    ]
    return document(
        run.name, "report", [*_unfinished(subject), _what(subject), _key_figures(subject)], sections, [_STYLE]
    )


# ------------------------------------------------------------------------------------------------------- the top


def _unfinished(subject: Subject) -> Iterator[str]:
    if subject.finished:
        return
    run = subject.run
    why = f": {escape(run.reason)}" if run.reason else ""
    yield (
        f'<p class="careful" id="unfinished"><strong>Unfinished.</strong> The run {_ENDED[run.status]} at '
        f"{run.samples_seen:,} of {subject.cfg.train.samples:,} samples{why}. Its figures are not those of the trained "
        "model: do not compare them with those of finished runs.</p>"
    )


def _what(subject: Subject) -> str:
    run, model, dataset = subject.run, subject.cfg.model, subject.dataset
    attended = [
        path
        for path, attention in (("generative", model.decoder_attention), ("inference", model.encoder_attention))
        if attention
    ]
    attention = f"depth-wise attention in the {' and the '.join(attended)} path" if attended else "no attention"
    parameters = run.summary.get("parameters", run.tags.get("parameters"))
    size = f", {int(str(parameters)):,} parameters" if parameters is not None else ""
    name = f" {dataset['name']}" if dataset else ""
    said = [
        f"A hierarchical variational autoencoder of {model.num_layers} latent layers with {attention}{size}.",
        f"Trained on{name} for {run.samples_seen:,} samples in {duration(wall_s(run))}"
        f"{_on(subject.environment)}{_when(run)}.",
    ]
    return f'<p class="lead">{escape(" ".join(said))}</p>'


def _on(environment: Mapping[str, Any]) -> str:
    ranks = environment.get("ranks", environment.get("world_size"))
    return f" on {ranks} rank{'s' if ranks != 1 else ''}" if ranks else ""


def _when(run: Run) -> str:
    return f", until {datetime.fromtimestamp(run.rows[-1]['time'], UTC):%Y-%m-%d %H:%M} UTC" if run.rows else ""


def _key_figures(subject: Subject) -> str:
    run = subject.run
    if subject.finished:
        test = run.summary["test"]
        errors = test.get("standard_error", {})
        shown = [
            (name, test[key], errors.get(key), unit)
            for name, key, unit in (("test bits/dim", "bits_per_dim", ""), ("test NELBO", "nelbo_nats", "nats"))
        ]
        shown.append(("test KL", sum(test["kl_nats_per_layer"]), None, "nats"))
    else:
        series = {
            name: run.series(f"val/{key}")
            for name, key in (("validation bits/dim", "bits_per_dim"), ("validation NELBO", "nelbo_nats"))
        }
        shown = [
            (name, points[-1].value, None, "nats" if "NELBO" in name else "")
            for name, points in series.items()
            if points
        ]
    tiles = []
    for name, value, error, unit in shown:
        beside = " ".join(filter(None, [tables.plus_minus(error) if error is not None else "", unit]))
        tiles.append(f"<div><dt>{name}</dt><dd>{figure(value)} <small>{beside}</small></dd></div>")
    return f'<dl class="key-figures">{"".join(tiles)}</dl>' if tiles else ""


# --------------------------------------------------------------------------------------------------- the numbers


def _figures(subject: Subject) -> str:
    run = subject.run
    if subject.finished:
        errors = "standard_error" in run.summary["test"]
        said = [
            "Of the averaged (EMA) weights at the end. The NELBO is an upper bound on the negative log-likelihood; "
            "<code>attvae evaluate RUN --iw 100</code> gives a tighter one.",
            "±: standard error over the images, which says nothing of what another seed would have given."
            if errors
            else "The run is from before standard errors were kept: <code>attvae evaluate RUN</code> gives them.",
        ]
        return tables.final_figures(run.summary) + f"<p>{' '.join(said)}</p>"
    found = tables.newest_figures(run)
    note = "During the training, without standard errors; val: averaged (EMA) weights, validation images."
    return f"{found}<p>{note}</p>" if found else "<p>None yet.</p>"


def _layers(subject: Subject) -> Iterator[Section]:
    run = subject.run
    looked = subject.looked if isinstance(subject.looked, Looked) else None
    during = layer_kl([run])
    if subject.finished:
        kl, of = run.summary["test"]["kl_nats_per_layer"], "the test images"
    elif during is not None:
        kl, of = during.nats[0], f"{during.of}, at {during.samples_seen:,} samples seen"
    else:
        return
    highest = max((value for value in kl if isfinite(value)), default=1.0)
    chart = (
        f"<figure><figcaption>KL of each layer, in nats</figcaption>{bars(run.name, 0, kl, len(kl), highest)}"
        f"<p>Of {of}.</p></figure>"
    )
    picture = _pictures(looked, ("layer_kl.png",)) if looked else ""
    figures = looked.figures if looked else {}
    said = []
    if subject.finished and run.summary["test"].get("active_units"):
        said.append(
            f"A unit is active if the variance of its posterior mean over the images is above {ACTIVE_VARIANCE:g}. "
            "In a hierarchy that counts units, too, which only repeat what the layers above have drawn: a layer with "
            "many active units and hardly any KL tells nothing new."
        )
    if looked:
        said.append(
            "Bits/dim with the layers below unknown: these follow their priors. What a row gains on the last one with "
            f"a figure is what the layers since then add, less what they cost; over {looked.figures['images']} images."
        )
    notes = f"<p>{escape(' '.join(said))}</p>" if said else ""
    shown = tables.layers(run.summary, kl, figures)
    yield Section("layers", "Layers", f'<div class="side">{chart}{picture}</div>{shown}{notes}')


# --------------------------------------------------------------------------------------------------- the pictures


def _pictured(looked: Looked) -> Iterator[Section]:
    figures = looked.figures
    of = {"ema": "the averaged (EMA) weights", "parameters": "the plain weights, for there are no averaged ones"}
    split = "test" if figures["split"] == "test" else "validation"
    note = (
        f"Pictures, and figures beside them: {of[looked.weights]} at {looked.samples_seen:,} samples seen, "
        f"{figures['images']} {split} images, seed {figures['seed']}."
    )
    yield Section("makes", "What it makes", f"<p>{note}</p>{_pictures(looked, _MADE)}{_memorised(figures)}")
    yield Section("keeps", "What it keeps of an image", _pictures(looked, _KEPT))


def _memorised(figures: Mapping[str, Any]) -> str:
    found = figures["nearest_images"]
    return (
        f"<h3>Does it repeat its training images?</h3>{tables.nearest(figures)}"
        "<p>Root mean square of the differences of two images' values; "
        f"{found['searched_training_images']:,} training images were searched. Of all pairs of a sample and an image "
        f"held out, in {found['closer_than_test']:.0%} the sample is the one nearer to the training images: 50% where "
        "samples are as far from them as new images are, towards 100% where samples are copies.</p>"
    )


def _attention(looked: Looked, gates: Mapping[str, float]) -> Iterator[Section]:
    figures = looked.figures
    parts = []
    if "depth_attention" in figures:
        switched = figures["most_attended_switched_off"]["images"]
        parts.append(_pictures(looked, _ATTENTION))
        for title, found in tables.attention(figures, gates):
            parts.append(f"<h3>{title}</h3>{found}")
        parts.append(
            "<p>Entropy: of α, averaged over images and pixels, and as a share of the largest one possible; its "
            "exponential is the effective number of what is attended to. Distance: layers between a layer and what it "
            "attends to, on average. Beyond the nearest: the share that a model without attention would not see. The "
            "last column: how much the NELBO rises where the one that is attended to most is switched off, over "
            f"{switched} images.</p>"
        )
    if "spatial_attention" in figures:
        parts.append(
            f"<h3>Non-local blocks</h3>{_pictures(looked, ('spatial_attention.png',))}{tables.spatial(figures)}"
        )
    if parts:
        yield Section("attention", "Attention", "\n".join(parts))


def _gates(run: Run) -> Mapping[str, float]:
    """γ by path/layer_<l>: at the end, or the newest."""
    prefix = "attention/gate_"
    newest = {
        metric.removeprefix(prefix).replace("_", "/", 1): run.series(metric)[-1].value
        for metric in run.metrics
        if metric.startswith(prefix)
    }
    return run.summary.get("attention_gates", newest)


def _pictures(looked: Looked, names: Sequence[str]) -> str:
    shown = [seen(name, looked.pictures[name], looked.figures) for name in names if name in looked.pictures]
    return f'<div class="pictures">{"".join(shown)}</div>' if shown else ""


def _not_looked_at(run: Run, why: str) -> Iterator[Section]:
    newest = {name: max(step for each, step in run.pictures if each == name) for name, _ in run.pictures}
    names = [*(name for name in _DURING if name in newest), *sorted(newest.keys() - set(_DURING))]
    shown = "".join(of_training(name, newest[name], run.pictures[name, newest[name]]()) for name in names)
    note = f'<p class="careful">The model could not be looked at: {escape(why)}.</p>'
    yield Section("pictures", "Pictures", f'{note}<div class="pictures">{shown}</div>')
