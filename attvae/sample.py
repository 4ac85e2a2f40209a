"""`attvae sample`: images of a trained model, streamed to a picture, an array or a folder."""

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Integer, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from attvae.all_or_nothing import all_or_nothing
from attvae.evaluate import open_trained
from attvae.evaluation.image_grid import grid_bands, grid_size
from attvae.evaluation.png_stream import save_png_stream
from attvae.evaluation_noise import sampling_noise
from attvae.model.vae import DeepVAE
from attvae.spec import DataSpec


def sample(trained: Path, out: Path, *, n: int, temperature: float, seed: int, batch: int, force: bool) -> None:
    """
    Args:
        trained: an export, or a run: `force` takes an unfinished one too.

    Raises:
        ValueError: no model there; or nothing can be written to `out`, or not what it names.
    """
    if not math.isfinite(temperature):
        raise ValueError(f"--temperature {temperature}: a finite number from 0 up is needed")
    check_out(out)
    model = open_trained(trained, force=force).model
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    write_samples(sample_stream(model, n, temperature, seed, batch), n, model.spec, out)


def sample_stream(
    model: DeepVAE, n: int, temperature: float, seed: int, batch: int
) -> Iterator[Integer[Tensor, "b c H W"]]:
    """n images in batches, on the CPU. Image i depends on the model, the temperature and (seed, i) alone."""
    device = next(model.parameters()).device
    for start in range(0, n, batch):
        noise, uniform = sampling_noise(model, range(start, min(start + batch, n)), seed)
        yield model.sample(len(uniform), temperature, [eps.to(device) for eps in noise], uniform.to(device)).cpu()


def check_out(out: Path) -> None:
    """
    Raises:
        ValueError: `write_samples` does not write what this path names, or not there.
    """
    if out.suffix not in (".png", ".npy", ""):
        raise ValueError(f"--out {out}: a grid is called .png, an array .npy, a folder has no suffix; not {out.suffix}")
    if out.is_dir() or (not out.suffix and out.exists()):
        raise ValueError(f"--out {out} is there already: name a new folder, a .png or a .npy")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"--out {out}: {parent} is no folder that can be written")


def write_samples(batches: Iterable[Integer[Tensor, "b c H W"]], n: int, spec: DataSpec, out: Path) -> None:
    """Writes n images whole or not at all, holding a few at a time.

    Args:
        out: `.png`: a grid; `.npy`: an array [n, H, W, C] of the model's own pixel values; without a suffix: a folder
            of PNGs 000000.png ... PNGs show 0 to the largest value as 0 to 255.

    Raises:
        ValueError: images of 2 or 4 channels for a PNG; or `out` cannot be written.
    """
    if out.suffix != ".npy" and spec.channels not in (1, 3):
        raise ValueError(f"--out {out}: images of {spec.channels} channels are no PNG; name an array, such as x.npy")
    images = (image for batch in batches for image in batch.permute(0, 2, 3, 1).numpy())
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        match out.suffix:
            case ".png":
                width, height = grid_size(n, spec.height, spec.width)
                bands = grid_bands((_shown(image, spec) for image in images), n)
                save_png_stream(out, width, height, spec.channels, bands)
            case ".npy":
                _save_array(images, n, spec, out)
            case _:
                _save_folder((_shown(image, spec) for image in images), n, out)
    except OSError as error:
        raise ValueError(f"cannot write {out}: {error.strerror or error}") from error


def _shown(image: Integer[ndarray, "h w c"], spec: DataSpec) -> UInt8[ndarray, "h w c"]:
    return image if spec.white == 255 else (image * (255 / spec.white)).round().astype(np.uint8)


def _save_array(images: Iterator[Integer[ndarray, "h w c"]], n: int, spec: DataSpec, out: Path) -> None:
    dtype = np.dtype(np.uint8 if spec.num_bits <= 8 else np.uint16)
    shape = (n, spec.height, spec.width, spec.channels)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with all_or_nothing(out) as aside, aside.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for image in images:
            file.write(np.ascontiguousarray(image).tobytes())


def _save_folder(images: Iterator[UInt8[ndarray, "h w c"]], n: int, out: Path) -> None:
    digits = max(6, len(str(n - 1)))
    with all_or_nothing(out) as aside:
        aside.mkdir()
        for index, image in enumerate(images):
            Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(aside / f"{index:0{digits}}.png")
