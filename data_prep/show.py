"""A grid of a data set's images, to look at."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray
from PIL import Image, ImageDraw, ImageFont

from attvae.data.decode import Sample, decode
from attvae.data.manifest import Manifest, Split
from attvae.data.tar import OpenShard
from attvae.spec import DataSpec
from data_prep.atomic import aside

GAP = 4
CAPTION = 14
SMALLEST = 64  # smaller images are magnified by a whole factor to about this
GREY, INK = (128, 128, 128), (255, 255, 255)


def show(folder: Path, out: Path, split: Split, images: int) -> None:
    """Draws images that are evenly spread over a split as a PNG, with their classes where they have any.

    Raises:
        ValueError: a shard is missing or damaged, the split is empty, or the images are of 2 or more than 4 channels.
    """
    manifest = Manifest.read(folder)
    if manifest.spec.channels not in (1, 3, 4):
        raise ValueError(f"{folder} has images of {manifest.spec.channels} channels: 1, 3 or 4 can be drawn")
    samples = _spread_samples(folder, manifest, split, images)
    scale = max(1, SMALLEST // max(manifest.spec.height, manifest.spec.width))
    width, height = manifest.spec.width * scale, manifest.spec.height * scale
    below = CAPTION if any("cls" in sample for sample in samples) else 0
    columns = math.ceil(math.sqrt(len(samples)))
    rows = math.ceil(len(samples) / columns)
    size = (GAP + columns * (width + GAP), GAP + rows * (height + below + GAP))
    grid = Image.new("RGB", size, GREY)
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default()
    for place, sample in enumerate(samples):
        row, column = divmod(place, columns)
        left, top = GAP + column * (width + GAP), GAP + row * (height + below + GAP)
        picture = _picture(sample["pixels"], manifest.spec).resize((width, height), Image.Resampling.NEAREST)
        grid.paste(picture, (left, top), picture if picture.mode == "RGBA" else None)
        label = sample.get("cls", b"").decode(errors="replace").strip()
        while font.getlength(label) > width:
            label = label[:-1]
        draw.text((left, top + height), label, INK, font)
    out.parent.mkdir(parents=True, exist_ok=True)
    with aside(out) as file:
        grid.save(file, "PNG")
    print(f"{out}: {len(samples)} of {manifest.samples(split):,} images of {split}, {size[0]}×{size[1]} pixels")


def _spread_samples(folder: Path, manifest: Manifest, split: Split, images: int) -> list[Sample]:
    total = manifest.samples(split)
    chosen = np.linspace(0, total - 1, min(images, total), dtype=np.int64)
    samples: list[Sample] = []
    first = 0
    for shard in manifest.shards(split):
        indices = chosen[(first <= chosen) & (chosen < first + shard.samples)] - first
        first += shard.samples
        if not len(indices):
            continue
        path = folder / shard.file
        with path.open("rb") as file:
            opened = OpenShard(str(path), file.fileno(), shard.samples)
        samples += (decode(opened.read(index), manifest.spec, scale=manifest.any_size) for index in indices.tolist())
    return samples


def _picture(pixels_HWC: Shaped[ndarray, "h w c"], spec: DataSpec) -> Image.Image:
    values = np.round(pixels_HWC.astype(np.float64) * 255 / spec.max_value).astype(np.uint8)
    return Image.fromarray(values[:, :, 0] if spec.channels == 1 else values)
