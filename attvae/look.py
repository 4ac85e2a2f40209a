"""Looks at a trained model: where it attends, what its layers do, what it makes. Composes data, model and pictures."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attvae import seeding
from attvae.data.config import DataConfig, Flip
from attvae.data.loader import eval_batches
from attvae.data.manifest import Manifest, Split
from attvae.evaluation.depth_attention import depth_attention_maps, depth_attention_of
from attvae.evaluation.depth_attention_maps import depth_attention_maps_picture
from attvae.evaluation.depth_attention_picture import depth_attention_picture
from attvae.evaluation.elbo import ElboSums
from attvae.evaluation.hidden_contexts import most_attended_hidden
from attvae.evaluation.image_grid import save_png
from attvae.evaluation.in_chunks import InChunks
from attvae.evaluation.interpolation import interpolated, interpolation_picture
from attvae.evaluation.layer_kl_picture import layer_kl_picture
from attvae.evaluation.nearest_images import memorisation, nearest_images, nearest_images_picture
from attvae.evaluation.reconstructions import reconstructions_picture
from attvae.evaluation.resampling import resampled, resampling_picture
from attvae.evaluation.samples import temperatures_picture
from attvae.evaluation.spatial_attention import spatial_attention_of, spatial_attention_picture
from attvae.evaluation.top_layers import counts, means_from_top, top_layers, top_layers_picture
from attvae.evaluation_noise import EVALUATION_SEED, evaluation_noise
from attvae.model.vae import DeepVAE
from attvae.run_folder import write_json
from attvae.seeding import Purpose

FIGURES = "figures.json"
PICTURES = (
    "samples.png",
    "nearest_images.png",
    "reconstructions.png",
    "top_layers.png",
    "interpolations.png",
    "resampling.png",
    "layer_kl.png",
    "depth_attention.png",
    "depth_attention_maps_decoder.png",
    "depth_attention_maps_encoder.png",
    "spatial_attention.png",
)
"""All that there may be; those of what a model does not have are absent."""

IMAGES = 64
"""Test images, and samples, that the figures are of."""
ROWS = 16
"""Images in one forward pass."""
COLUMNS = 10
"""Images side by side in a picture."""
TEMPERATURES = (0.6, 0.7, 0.8, 0.9, 1.0)
SEARCHED = 200_000
"""At most so many training images are searched for the nearest ones, from the first on."""
_SEARCHED_AT_ONCE = 500
_PLACES = tuple(t / 6 for t in range(7))
_INFERRED, _INFERRED_SHOWN = 17, 9  # values of K in the figures, in the picture
_RESAMPLED, _DRAWS = 8, 8  # images, draws
_SWITCHED_OFF = 32  # images
_MIRRORS: dict[Flip, Sequence[Sequence[int]]] = {
    "none": [()],
    "horizontal": [(), (3,)],
    "both": [(), (3,), (2,), (2, 3)],
}
"""The dimensions of [n, C, H, W] that the training flips, in all combinations."""
_LAYERS_SHOWN = 8
_BLOCKS_SHOWN = 15


class _Seen(NamedTuple):
    """Test images, what the posteriors make of them, and where all of it is drawn from."""

    model: DeepVAE
    chunks: InChunks
    x: Tensor
    noise: list[Tensor]
    latents: list[Tensor]
    white: int
    device: torch.device
    seed: int

    def prior_noise(self, rows: int, draw: int = 0) -> list[Tensor]:
        """Row i depends on (seed, i, draw) only; draw 0 is that of samples, 1 that of pixels."""
        places = [(i, draw) for i in range(rows)]
        noise = seeding.latent_noise(self.seed, Purpose.SAMPLE, places, self.model.latent_shapes)
        return [eps.to(self.device) for eps in noise]

    def drawn(self, latents: list[Tensor]) -> Tensor:
        """From the likelihood; the noise of row i depends on (seed, i) only."""
        places = [(i, 1) for i in range(len(latents[0]))]
        noise = seeding.pixel_noise(self.seed, Purpose.SAMPLE, places, self.model.pixel_noise_shape)
        return self.chunks.decode(latents, noise.to(self.device))


def look(
    model: DeepVAE,
    manifest: Manifest,
    data: DataConfig,
    out: Path,
    device: torch.device,
    seed: int = EVALUATION_SEED,
    split: Split = "test",
) -> dict[str, Any]:
    """Writes the pictures of docs/pictures.md into a folder, and figures.json, which it also gives back.

    The model has the weights to look at (EMA) and comes back as it was. The same seed gives the same files. Not
    collective: one rank looks.

    Raises:
        ValueError: the data are not of the images that the model takes, are damaged, or lack the split.
    """
    if manifest.spec != model.spec:
        raise ValueError(f"the model takes {model.spec!r}, the data set {manifest.name} holds {manifest.spec!r}")
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return _look(model, manifest, data, out, device, seed, split)
    finally:
        model.train(training)


def _look(
    model: DeepVAE, manifest: Manifest, data: DataConfig, out: Path, device: torch.device, seed: int, split: Split
) -> dict[str, Any]:
    total = manifest.samples(split)
    images = min(IMAGES, total)
    # The first of so many ranks has images from all over the split, whose neighbours may be alike.
    batch = next(eval_batches(manifest, data, split, seed, 0, images, 0, total // images))
    order = torch.from_numpy(seeding.generator(seed, Purpose.SAMPLE, images).permutation(images))
    order = order[batch.weights[order] > 0]
    if not len(order):
        raise ValueError(f"no image of split {split!r} is left to look at: all {images} of them are damaged")
    for name in (FIGURES, *PICTURES):  # of an earlier look, perhaps of another model
        (out / name).unlink(missing_ok=True)
    x = batch.x[order].to(device)
    noise = evaluation_noise(model, batch.ids[order], 0, device, seed)
    chunks = InChunks(model, ROWS)
    white = manifest.spec.white
    seen = _Seen(model, chunks, x, noise, chunks.encode(x, noise), white, device, seed)
    figures: dict[str, Any] = {
        "seed": seed,
        "split": split,
        "images": len(x),
        "data": {"name": manifest.name, "version": manifest.version, "fingerprint": manifest.fingerprint},
        "pixel_values": {"white": white, "binary": manifest.spec.binary},
    }
    kl_nats = _layer_kl(seen, manifest, out)
    figures |= _attention(seen, out)
    figures |= _spatial_attention(seen, out)
    _reconstructions(seen, out)
    figures["top_layers"] = _top_layers(seen, kl_nats, out)
    _interpolations(seen, out)
    figures["resampling"] = _resampling(seen, out)
    samples = _samples(seen, out)
    figures["nearest_images"] = _nearest(seen, samples, manifest, data, out)
    figures["pictures"] = [name for name in PICTURES if (out / name).exists()]
    write_json(out / FIGURES, _without_nan(figures))
    return figures


def _layer_kl(seen: _Seen, manifest: Manifest, out: Path) -> Tensor:
    sums = ElboSums(len(seen.noise), manifest.spec)
    parts = []
    for rows in torch.arange(len(seen.x), device=seen.device).split(ROWS):
        elbo = seen.model(seen.x[rows], [eps[rows] for eps in seen.noise])
        sums.add(elbo, torch.ones(len(rows)))
        parts.append(elbo.kl_nats)
    found = sums.figures(lambda total: total)
    assert found is not None, "there are images"
    layer_kl_picture(found, out / "layer_kl.png")
    return torch.cat(parts, dim=1)


def _attention(seen: _Seen, out: Path) -> dict[str, Any]:
    """Nothing for a model without depth-wise attention."""
    attention = depth_attention_of(seen.chunks, seen.x, seen.noise)
    layers = len(seen.noise)
    if not any(attention):
        return {}
    depth_attention_picture(attention, layers, out / "depth_attention.png")
    maps = depth_attention_maps(seen.chunks, seen.x[:1], [eps[:1] for eps in seen.noise])
    for path in ("decoder", "encoder"):
        attending = [each.layer for each in getattr(attention, path) if len(each.attended) > 1]
        if attending:
            shown = [attending[i] for i in counts(len(attending) - 1, _LAYERS_SHOWN)]
            picture = depth_attention_maps_picture(seen.x[0], maps, path, shown, len(attending), layers, seen.white)
            save_png(picture, out / f"depth_attention_maps_{path}.png")
    few = slice(0, _SWITCHED_OFF)
    hidden = most_attended_hidden(seen.chunks, attention, seen.x[few], [eps[few] for eps in seen.noise])
    return {
        "depth_attention": attention.as_json(layers),
        "most_attended_switched_off": {"images": len(seen.x[few]), "layers": [each.as_json() for each in hidden]},
    }


def _spatial_attention(seen: _Seen, out: Path) -> dict[str, Any]:
    """Nothing for a model without non-local blocks."""
    at = (0.5, 0.5)
    blocks = spatial_attention_of(seen.model, seen.x[:1], [eps[:1] for eps in seen.noise], at)
    if not blocks:
        return {}
    picture = spatial_attention_picture(seen.x[0], at, blocks, _BLOCKS_SHOWN, seen.white)
    save_png(picture, out / "spatial_attention.png")
    return {"spatial_attention": {"asking_pixel": list(at), "blocks": [block.as_json() for block in blocks]}}


def _reconstructions(seen: _Seen, out: Path) -> None:
    latents = [z[:COLUMNS] for z in seen.latents]
    means, drawn = seen.chunks.mean_image(latents), seen.drawn(latents)
    save_png(reconstructions_picture(seen.x[:COLUMNS], means, drawn, seen.white), out / "reconstructions.png")


def _top_layers(seen: _Seen, kl_nats: Tensor, out: Path) -> dict[str, Any]:
    ks = counts(len(seen.latents), _INFERRED)
    noise = seen.prior_noise(len(seen.x))
    means = means_from_top(seen.chunks, seen.latents, noise, ks)
    figures = top_layers(seen.chunks, seen.x, seen.latents, kl_nats, noise, means, ks)
    shown = [ks[i] for i in counts(len(ks) - 1, _INFERRED_SHOWN)]
    save_png(top_layers_picture(seen.x[:6], means, figures, shown, seen.white), out / "top_layers.png")
    return figures.as_json()


def _interpolations(seen: _Seen, out: Path) -> None:
    pairs = min(5, len(seen.x) // 2)
    if pairs == 0:  # one image only
        return
    a, b = slice(0, pairs), slice(pairs, 2 * pairs)
    means = seen.chunks.encode(seen.x[: 2 * pairs], [torch.zeros_like(eps[: 2 * pairs]) for eps in seen.noise])
    latents_a, latents_b = [z[a] for z in means], [z[b] for z in means]
    between = interpolated(seen.chunks, latents_a, latents_b, _PLACES)
    save_png(interpolation_picture(seen.x[a], seen.x[b], between, _PLACES, seen.white), out / "interpolations.png")


def _resampling(seen: _Seen, out: Path) -> dict[str, Any]:
    latents = [z[:_RESAMPLED] for z in seen.latents]
    noise = [seen.prior_noise(len(latents[0]), draw) for draw in range(2, 2 + _DRAWS)]
    layers = [resampled(seen.chunks, latents, layer, noise) for layer in range(len(latents))]
    shown = [layers[i] for i in counts(len(layers) - 1, _LAYERS_SHOWN)]
    picture = resampling_picture(seen.chunks.mean_image(latents)[0], shown, len(layers), 0, seen.white)
    save_png(picture, out / "resampling.png")
    return {
        "images": len(latents[0]),
        "draws": _DRAWS,
        "variance_per_layer": [float(each.variance.mean()) for each in layers],
    }


def _samples(seen: _Seen, out: Path) -> Tensor:
    """Drawn at temperature 1. The picture shows means of binary data, where draws hide the image under their noise."""
    noise = seen.prior_noise(IMAGES)
    nothing: list[Tensor | None] = [None] * len(noise)
    shown = {}
    for temperature in TEMPERATURES:
        latents = seen.chunks.completed(nothing, [eps[:COLUMNS] for eps in noise], temperature)
        shown[temperature] = seen.chunks.mean_image(latents) if seen.white == 1 else seen.drawn(latents)
    what = "means of the likelihood: probabilities of a one" if seen.white == 1 else "drawn from the likelihood"
    save_png(temperatures_picture(shown, seen.white, what), out / "samples.png")
    return seen.drawn(seen.chunks.completed(nothing, noise, 1.0))


def _nearest(seen: _Seen, samples: Tensor, manifest: Manifest, data: DataConfig, out: Path) -> dict[str, Any]:
    both = torch.cat([samples, seen.x])
    found = nearest_images(both, _training_images(manifest, data, seen.seed), _MIRRORS[data.flip])
    of_samples, of_tests = (
        found._replace(images=found.images[rows], distances=found.distances[rows])
        for rows in (slice(0, len(samples)), slice(len(samples), None))
    )
    picture = nearest_images_picture(samples, of_samples, seen.x, of_tests, seen.white, COLUMNS)
    save_png(picture, out / "nearest_images.png")
    return memorisation(of_samples, of_tests)


def _training_images(manifest: Manifest, data: DataConfig, seed: int) -> Iterator[Tensor]:
    """As stored, binary data drawn once; damaged ones left out."""
    batches = eval_batches(manifest, data, "train", seed, 0, _SEARCHED_AT_ONCE, 0, 1)
    for batch in islice(batches, SEARCHED // _SEARCHED_AT_ONCE):
        yield batch.x[batch.weights > 0]


def _without_nan(figures: Any) -> Any:
    """JSON has no such numbers."""
    match figures:
        case dict():
            return {name: _without_nan(each) for name, each in figures.items()}
        case list():
            return [_without_nan(each) for each in figures]
        case float() if not math.isfinite(figures):
            return None
        case _:
            return figures
