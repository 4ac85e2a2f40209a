"""README.md of an export folder: what the model is, its figures, how to use it, where it comes from."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from attvae import __version__
from attvae.export import ExportConfig
from attvae.model.vae import DeepVAE
from attvae.programs import joined
from attvae.tracking.secrets import without_secrets

CITATION = """\
@inproceedings{apostolopoulou2022deep,
  title = {Deep Attentive Variational Inference},
  author = {Apostolopoulou, Ifigeneia and Char, Ian and Rosenfeld, Elan and Dubrawski, Artur},
  booktitle = {International Conference on Learning Representations},
  year = {2022}
}"""


def model_card(
    config: ExportConfig,
    model: DeepVAE,
    *,
    summary: Mapping[str, Any] | None = None,
    source: str | None = None,
    programs: Sequence[str] = (),
    origin: str = "trained by attvae",
) -> str:
    """
    Args:
        summary: the figures of these very weights, as in summary.json.
        source: where the images come from, with their licence if the data set's manifest says so.
        programs: suffixes of encoder and sampler in the folder.
        origin: what made the weights.
    """
    return (
        "\n\n".join(
            [
                f"# A deep attentive VAE{_of_data(config)}",
                _what(config, sum(p.numel() for p in model.parameters()), origin),
                *_warnings(config),
                f"## Figures\n\n{_figures(summary)}",
                f"## Use\n\n{_use(config)}",
                *_programs(config, model, programs),
                f"## Data\n\n{_data(config, source)}",
                f"## Citation\n\n```bibtex\n{CITATION}\n```",
            ]
        )
        + "\n"
    )


def _of_data(config: ExportConfig) -> str:
    return f" of {config.trained_on.name}" if config.trained_on and config.trained_on.name else ""


def _what(config: ExportConfig, parameters: int, origin: str) -> str:
    model, spec = config.model, config.spec
    attended = [
        path
        for path, attention in (("generative", model.decoder_attention), ("inference", model.encoder_attention))
        if attention
    ]
    attention = f"depth-wise attention in the {' and the '.join(attended)} path" if attended else "no attention"
    pixels = "binary pixels" if spec.binary else f"pixel values 0 to {spec.max_value}"
    trained = f" after {config.samples_seen:,} training samples" if config.samples_seen is not None else ""
    weights = "averaged (EMA) weights" if config.weights == "ema" else "weights"
    return (
        f"A hierarchical variational autoencoder with {_layers(config)} and {attention}; {parameters:,} parameters. "
        f"It models images of {spec.height}×{spec.width}×{spec.channels} with {pixels}. "
        f"These are the {weights}{trained}, {origin}; written by attvae {__version__}."
    )


def _layers(config: ExportConfig) -> str:
    numbers = Counter(config.model.latent_shapes(config.spec))
    sizes = ", ".join(f"{layers} of {'×'.join(map(str, shape))}" for shape, layers in numbers.items())
    if len(numbers) > 1:
        return f"{config.model.num_layers} latent layers ({sizes})"
    return f"{config.model.num_layers} latent layers of {'×'.join(map(str, next(iter(numbers))))}"


def _warnings(config: ExportConfig) -> list[str]:
    reasons = "".join(f"\n* {reason}" for reason in config.forced)
    return [f"**Exported by force, do not compare its figures:**\n{reasons}"] if config.forced else []


def _figures(summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return "None were computed with these weights: `attvae evaluate DIR --data DATA` does it."
    lines = ["| split | NELBO, nats per image | bits per dimension | images |", "|---|---|---|---|"]
    for split in ("test", "val"):
        figures = summary[split]
        errors = figures.get("standard_error", {})
        values = [f"{figures[name]:.4f}{_error(errors.get(name))}" for name in ("nelbo_nats", "bits_per_dim")]
        lines.append(f"| {split} | {values[0]} | {values[1]} | {figures['images']:,}{_draws(figures)} |")
    note = "Upper bounds on the negative log-likelihood, one posterior sample per draw."
    return "\n".join(lines) + f"\n\n{note}{' ±: standard error over the images.' if errors else ''}"


def _error(error: float | None) -> str:
    return "" if error is None else f" ± {error:.4f}"


def _draws(figures: Mapping[str, Any]) -> str:
    draws = figures.get("draws", 1)
    return f", {draws} draws each" if draws > 1 else ""


def _use(config: ExportConfig) -> str:
    dtype = "uint8" if config.spec.num_bits <= 8 else "uint16"
    shape = ", ".join(map(str, config.spec.shape))
    return f"""\
```python
import attvae, torch                                # needs torch, safetensors, pydantic, numpy and jaxtyping

model = attvae.load("DIR")                          # this folder; an ordinary nn.Module in evaluation mode
images = model.sample(16, temperature=0.8)          # {dtype} [16, {shape}]
latents = model.encode(images)                      # {config.model.num_layers} tensors, the top layer's first
nelbo_nats = model(images).nelbo_nats               # per image
```

```
attvae sample DIR --n 64 --temperature 0.8 --out grid.png
attvae evaluate DIR --data DATA
```"""


def _programs(config: ExportConfig, model: DeepVAE, suffixes: Sequence[str]) -> list[str]:
    if not suffixes:
        return []
    files = ", ".join(f"`{name}{suffix}`" for suffix in suffixes for name in ("encoder", "sampler"))
    shape = joined([torch.empty(1, *of_layer) for of_layer in model.latent_shapes]).shape[1:]
    noise = f"noise [B, {', '.join(map(str, shape))}]"
    pixel_noise = f"pixel_noise [B, {', '.join(map(str, model.pixel_noise_shape))}]"
    return [
        f"""\
## Programs

{files}: functions for any batch size B that run without attvae.

* encoder: x [B, {", ".join(map(str, config.spec.shape))}], {noise} → latents, shaped like the noise
* sampler: {noise}, temperature [], {pixel_noise} → pixels, head (the raw parameters of the likelihood)

noise is standard normal, pixel_noise uniform in [0, 1), both float32; zeros in place of the noise give means."""
    ]


def _data(config: ExportConfig, source: str | None) -> str:
    if config.trained_on is None:
        return "What it was trained on is not recorded."
    name, version, fingerprint = config.trained_on.name, config.trained_on.version, config.trained_on.fingerprint
    named = f"`{name}`, version `{version}`, " if name else ""
    lines = [f"{named}fingerprint `{fingerprint}`."]
    lines += [f"Source: {without_secrets(source)}."] if source else []
    return "\n".join([*lines, "The licence of the data applies to them, and may bear on the weights."])
