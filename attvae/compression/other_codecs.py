"""What ordinary lossless image files need for the same pixels, one file an image, headers included."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Shaped
from torch import Tensor

from attvae.compression.images import picture
from attvae.evaluation.codecs import CODECS, encoded
from attvae.spec import DataSpec

JXL_EFFORT = 9  # the strongest of `cjxl`


class Size(NamedTuple):
    """Bits per dimension, or why there is no figure."""

    name: str
    bits_per_dim: float | None
    remark: str


def sizes(images: Sequence[Shaped[Tensor, "c h w"]], spec: DataSpec) -> list[Size]:
    """PNG, WebP and JPEG XL, each with its strongest lossless compression."""
    pictures = [picture(x, spec) for x in images]
    dimensions = len(images) * spec.dimensions
    found = []
    for codec in CODECS:
        if codec == "webp" and spec.num_bits > 8:
            found.append(Size("WebP", None, "holds 8 bits a value"))
        else:
            total = sum(len(encoded(p, codec)) for p in pictures)
            found.append(Size({"png": "PNG", "webp": "WebP"}[codec], 8 * total / dimensions, ""))
    return [*found, _jpeg_xl(images, spec, dimensions)]


def _jpeg_xl(images: Sequence[Shaped[Tensor, "c h w"]], spec: DataSpec, dimensions: int) -> Size:
    if (program := shutil.which("cjxl")) is None:
        return Size("JPEG XL", None, "cjxl is not installed (Debian: libjxl-tools)")
    total = 0
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "image.png", Path(folder) / "image.jxl"
        for x in images:
            picture(x, spec).save(source)
            command = [
                program,
                str(source),
                str(target),
                "-d",
                "0",
                "-e",
                str(JXL_EFFORT),
                "--quiet",
                "--num_threads=0",
            ]
            made = subprocess.run(command, capture_output=True, text=True)
            if made.returncode:
                said = made.stderr.strip().splitlines()
                return Size("JPEG XL", None, f"cjxl failed: {said[-1] if said else made.returncode}")
            total += target.stat().st_size
    return Size("JPEG XL", 8 * total / dimensions, "")
