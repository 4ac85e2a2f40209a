"""What ordinary lossless image files need for the same images: the yardstick beside a model's bits/dim."""

import io
from typing import Literal

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from attvae.spec import DataSpec

Codec = Literal["png", "webp"]
CODECS: tuple[Codec, ...] = ("png", "webp")


def codec_bytes(x: UInt8[Tensor, "b c h w"], spec: DataSpec, codec: Codec) -> int:
    """Bytes of one file an image, headers included, as Pillow writes it with its strongest compression.

    Raises:
        ValueError: the images are not of 8 bits and 1 or 3 channels.
    """
    if spec.num_bits != 8 or spec.channels not in (1, 3):
        raise ValueError(f"{codec} is measured for 8 bits and 1 or 3 channels, not {spec.num_bits} and {spec.channels}")
    return sum(
        len(encoded(Image.fromarray(image.squeeze(-1) if spec.channels == 1 else image), codec))
        for image in x.permute(0, 2, 3, 1).numpy()
    )


def encoded(picture: Image.Image, codec: Codec) -> bytes:
    """The file of one picture, which holds every value as it is, also where nobody sees it."""
    file = io.BytesIO()
    match codec:
        case "png":
            picture.save(file, "PNG", optimize=True)
        case "webp":
            picture.save(file, "WEBP", lossless=True, quality=100, method=6, exact=True)
    return file.getvalue()
