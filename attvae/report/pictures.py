"""The pictures of a report: embedded, described, explained."""

import base64
import io
from collections.abc import Callable, Mapping
from html import escape
from typing import Any, NamedTuple

from PIL import Image

from attvae.pages.figures import figure

_WIDEST = 1600
"""Pixels; a page shows no more of them."""
_EXACT_BYTES = 400_000
"""Of a PNG that is embedded pixel for pixel; a larger one loses what nobody sees."""
_QUALITY = 82


class _Picture(NamedTuple):
    """
    Attributes:
        title: what stands above it.
        alt: what it shows, given figures.json.
        caption: how to read it.
    """

    title: str
    alt: Callable[[Mapping[str, Any]], str]
    caption: str


def _matrices(figures: Mapping[str, Any]) -> str:
    says = []
    for path, name in (("decoder", "generative"), ("encoder", "inference")):
        layers = figures["depth_attention"].get(path, {}).get("layers", [])
        each = [f"layer {layer['layer']} mostly to {layer['most_attended']}" for layer in layers]
        says += [f"{name} path: {', '.join(each)}"] if each else []
    return f"Matrices of the depth-wise attention, averaged over images and pixels. In the {'; in the '.join(says)}."


def _nearest(figures: Mapping[str, Any]) -> str:
    found = figures["nearest_images"]
    return (
        "Samples above the training images nearest to them, and test images above theirs. "
        f"Mean distance {figure(found['samples']['mean'])} for samples, "
        f"{figure(found['test_images']['mean'])} for images held out."
    )


def _top(figures: Mapping[str, Any]) -> str:
    found = figures["top_layers"]
    each = (f"K = {k}: {figure(bits)}" for k, bits in zip(found["inferred_layers"], found["bits_per_dim"], strict=True))
    return f"Reconstructions from the top K layers. Bits/dim by K: {', '.join(each)}."


def _resampled(figures: Mapping[str, Any]) -> str:
    each = (f"{layer}: {figure(v)}" for layer, v in enumerate(figures["resampling"]["variance_per_layer"]))
    return f"One image with one layer drawn anew at a time. Variance of a pixel by layer: {', '.join(each)}."


def _spatial(figures: Mapping[str, Any]) -> str:
    blocks = figures["spatial_attention"]["blocks"]
    each = (f"{block['block']}: {block['effective_pixels']:.1f} of {block['pixels']} pixels" for block in blocks)
    return f"Where the pixel in the middle looks in the non-local blocks. Effective pixels: {', '.join(each)}."


PICTURES = {
    "samples.png": _Picture(
        "Samples",
        lambda _: "Samples of the model, a row for each temperature from 0.6 to 1, a column for each noise.",
        "A lower temperature narrows the priors: tamer images, less variety. Figures in bits are for T = 1 only.",
    ),
    "nearest_images.png": _Picture(
        "Memorised?",
        _nearest,
        "A model that repeats what it has seen gives samples nearer to the training images than new images are. "
        "Shown are the closest pairs, so the worst cases.",
    ),
    "interpolations.png": _Picture(
        "Interpolations",
        lambda _: "Rows that lead from one image to another through images between them.",
        "Between the posteriors' means, as standardised noise of the priors.",
    ),
    "reconstructions.png": _Picture(
        "Reconstructions",
        lambda _: "Images, below them the means of the likelihood given their latents, and below those a draw.",
        "What the latents keep of an image. The draw has the likelihood's noise, too.",
    ),
    "top_layers.png": _Picture(
        "From the top K layers",
        _top,
        "The top K layers know the image, those below stand at the means of their priors: what a column adds to the "
        "one before, its layer knows.",
    ),
    "resampling.png": _Picture(
        "One layer drawn anew",
        _resampled,
        "Drawn from its prior, with the latents of all others kept: what changes is what the layer decides alone.",
    ),
    "layer_kl.png": _Picture(
        "On a logarithmic scale",
        lambda figures: f"Bars of the KL of each layer over {figures['images']} images, with a line at 0.1 nats.",
        "Layers below the dashes tell next to nothing.",
    ),
    "depth_attention.png": _Picture(
        "Which layers attend to which",
        _matrices,
        "α(m→l), averaged over images and pixels; rows sum to 1. Grey: not there to attend to.",
    ),
    "depth_attention_maps_decoder.png": _Picture(
        "Generative path, pixel by pixel",
        lambda _: "Maps of the depth-wise attention of the generative path for one image, a row for each layer.",
        "One image. Where a row differs from pixel to pixel, the average above hides it.",
    ),
    "depth_attention_maps_encoder.png": _Picture(
        "Inference path, pixel by pixel",
        lambda _: "Maps of the depth-wise attention of the inference path for one image, a row for each layer.",
        "The same for the bottom-up features.",
    ),
    "spatial_attention.png": _Picture(
        "Where one pixel looks",
        _spatial,
        "Within its map, in one image; each map has colours up to its own peak.",
    ),
}
"""Of attvae.look.PICTURES, in the order of the page."""

_DURING = {
    "samples": "Samples of the model in a grid.",
    "reconstructions": "Images and their reconstructions in a grid.",
    "layer_kl": "Bars of the KL of each layer.",
    "depth_attention": "Matrices of the depth-wise attention, averaged over images and pixels.",
}


def seen(name: str, png: bytes, figures: Mapping[str, Any]) -> str:
    """A figure element of a picture of `attvae.look`, with `data-picture`."""
    title, alt, caption = PICTURES[name]
    return _figure(name.removesuffix(".png"), png, title, alt(figures), caption)


def of_training(name: str, samples_seen: int, png: bytes) -> str:
    """A figure element of a picture that the training has drawn, with `data-picture`."""
    alt = _DURING.get(name, f"A picture called {name}.")
    return _figure(name, png, f"{name} at {samples_seen:,} samples seen", alt, "Drawn by the training.")


def _figure(name: str, png: bytes, title: str, alt: str, caption: str) -> str:
    try:
        source, width, height = embedded(png)
    except OSError as error:
        return f'<p class="careful">The picture {escape(name)} is damaged: {escape(str(error))}.</p>'
    return (
        f'<figure class="picture" style="--width: {width}px"><figcaption>{escape(title)}</figcaption>'
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(title)}">'
        f'<img alt="{escape(alt)}" data-picture="{escape(name)}" width="{width}" height="{height}" src="{source}">'
        f"</div><p>{escape(caption)}</p></figure>"
    )


def embedded(png: bytes) -> tuple[str, int, int]:
    """A data URI of the picture, as WebP, its width and its height on the page.

    Raises:
        OSError: it is damaged.
    """
    with Image.open(io.BytesIO(png)) as opened:
        image = opened.convert("RGB")
    if len(png) <= _EXACT_BYTES:
        webp = _webp(image, lossless=True)
    else:
        image.thumbnail((_WIDEST, _WIDEST * image.height), Image.Resampling.LANCZOS)
        webp = _webp(image, quality=_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(webp).decode()}", *image.size


def _webp(image: Image.Image, **how: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format="WEBP", **how)
    return file.getvalue()
