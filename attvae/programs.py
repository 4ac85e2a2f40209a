"""Encoder and sampler of a model as programs that run without attvae: torch.export's .pt2, and ONNX.

encoder   x [B, C, H, W] raw pixels, noise [B, L, Z, h, w] standard normal -> latents [B, L, Z, h, w]
sampler   noise [B, L, Z, h, w] standard normal, temperature [] , pixel_noise [B, U, H, W] uniform in [0, 1)
          -> pixels [B, C, H, W], head [B, P, H, W] (the likelihood's raw parameters)

With several grids, noise and latents are [B, N]: the values of the first layer, then those of the next.

Any batch size. All random numbers come from outside, so that a program is a function. docs/export.md.
"""

import importlib.util
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from attvae.model.vae import DeepVAE

Format = Literal["torch-export", "onnx"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[Format, str] = {"torch-export": ".pt2", "onnx": ".onnx"}

ONNX_OPSET = 20
"""The first with grid and GELU as operators of their own; onnxruntime has read it since 1.17."""

_TRACED_IMAGES = 2  # 1 would be taken for a batch that is always 1


def parse_formats(text: str) -> tuple[Format, ...]:
    """Of a list with commas, which may be empty.

    Raises:
        ValueError: it names something else.
    """
    names = {name.strip() for name in text.split(",") if name.strip()}
    if unknown := names.difference(FORMATS):
        raise ValueError(f"--with {text}: {min(unknown)!r} is none of {', '.join(FORMATS)}")
    return tuple(name for name in FORMATS if name in names)


class Encoder(nn.Module):
    """Images to latents."""

    def __init__(self, model: DeepVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Integer[Tensor, "b c H W"], noise: Float[Tensor, "b *n"]) -> Float[Tensor, "b *n"]:
        return joined(self.model.encode(x, parted(noise, self.model.latent_shapes)))


class Sampler(nn.Module):
    """Noise to images."""

    def __init__(self, model: DeepVAE) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, noise: Float[Tensor, "b *n"], temperature: Float[Tensor, ""], pixel_noise: Float[Tensor, "b u H W"]
    ) -> tuple[Integer[Tensor, "b c H W"], Float[Tensor, "b p H W"]]:
        head = self.model.sample_head(noise.shape[0], temperature, parted(noise, self.model.latent_shapes))
        return self.model.draw_pixels(head, pixel_noise), head


def joined(layers: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b *n"]:
    """Noise or latents of all layers as one tensor: [B, L, Z, h, w], or [B, N] with several grids."""
    if len({layer.shape[1:] for layer in layers}) == 1:
        return torch.stack([*layers], dim=1)
    return torch.cat([layer.flatten(1) for layer in layers], dim=1)


def parted(tensor: Float[Tensor, "b *n"], shapes: Sequence[tuple[int, ...]]) -> list[Float[Tensor, "b _ _ _"]]:
    """The inverse of `joined`, for layers of these shapes."""
    if len({*shapes}) == 1:
        return [*tensor.unbind(1)]
    parts = tensor.split([math.prod(shape) for shape in shapes], dim=1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]


class _Program(NamedTuple):
    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]


def write(folder: Path, model: DeepVAE, formats: Sequence[Format]) -> None:
    """Writes `encoder` and `sampler` into a folder, in each format.

    Raises:
        ValueError: the packages that write ONNX are missing.
    """
    if not formats:
        return
    if "onnx" in formats and not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript")):
        raise ValueError("ONNX needs onnx and onnxscript: pip install 'attvae[onnx]'")
    for program in _programs(model):
        with _quiet():
            exported = _exported(program)
            if "torch-export" in formats:
                torch.export.save(exported, folder / (program.name + SUFFIXES["torch-export"]))
            if "onnx" in formats:
                _write_onnx(folder / (program.name + SUFFIXES["onnx"]), program, exported)


def _programs(model: DeepVAE) -> Iterator[_Program]:
    model = deepcopy(model).cpu().eval().requires_grad_(False)
    b, spec = _TRACED_IMAGES, model.spec
    noise = joined([torch.zeros(b, *shape) for shape in model.latent_shapes])
    x = torch.zeros(b, *spec.shape, dtype=torch.uint8 if spec.num_bits <= 8 else torch.uint16)
    yield _Program("encoder", Encoder(model), {"x": x, "noise": noise}, ("latents",))
    pixel_noise = torch.full((b, *model.pixel_noise_shape), 0.5)
    yield _Program(
        "sampler",
        Sampler(model),
        {"noise": noise, "temperature": torch.tensor(1.0), "pixel_noise": pixel_noise},
        ("pixels", "head"),
    )


@torch.no_grad()
def _exported(program: _Program) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    shapes = {name: {0: batch} if tensor.dim() else {} for name, tensor in program.inputs.items()}
    return torch.export.export(program.module, (), program.inputs, dynamic_shapes=shapes)


def _write_onnx(path: Path, program: _Program, exported: torch.export.ExportedProgram) -> None:
    with sdpa_kernel(SDPBackend.MATH):  # ONNX has no attention over three axes, but all that it is made of
        simple = exported.run_decompositions()
    written = torch.onnx.export(
        simple,
        (),
        kwargs=program.inputs,
        input_names=[*program.inputs],
        output_names=[*program.outputs],
        opset_version=ONNX_OPSET,
        dynamo=True,
        verbose=False,
    )
    assert written is not None
    written.save(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says about torchvision and its own deprecations."""
    log: Any = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
