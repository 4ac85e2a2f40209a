"""From the bytes of an image file to its pixels.

What a file is, its content says, never its name. Of the ways to read one that users of image data differ in, these hold
here:

* Palettes and inks (CMYK, YCCK) become RGB. The inks of a JPEG are inverted where Adobe's marker is present, as all
  software that writes the marker means it. Colour profiles and the orientation in EXIF are ignored.
* An image has 4 channels (RGBA) as soon as its file declares anything transparent, be it one entry of a palette.
* Of animations and pages, the first one counts.
* Grey images may have 16 bits; colour of more than 8 bits a channel is refused, since Pillow would cut it to 8.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import Shaped
from numpy import ndarray
from PIL import Image, ImageChops, ImageFile, UnidentifiedImageError

LARGEST_PIXELS = 128_000_000
# No others: some of Pillow's readers start programs (EPS), and what they do with damaged files is hardly tested.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")


class Header(NamedTuple):
    """What a file says of its image before any pixel is read."""

    height: int
    width: int
    channels: Literal[1, 3, 4]
    num_bits: Literal[8, 16]


def read_header(file: Path | bytes) -> Header:
    """The header of an image file; of a path, the beginning is read only.

    Raises:
        ValueError: no image file, a damaged one, or one that `read_pixels` would refuse whatever its pixels.
        OSError: the file cannot be read.
    """
    with _opened(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
        return _header(image)


def read_pixels(content: bytes, channels: int | None = None) -> Shaped[ndarray, "h w c"]:
    """The pixels of an image file, uint8, or uint16 where a grey image has 16 bits.

    Args:
        channels: 1, 3 or 4; by default those of the file. Only what loses nothing is converted: grey to RGB, an
            opaque alpha channel is added or left out.

    Raises:
        ValueError: no image file, a damaged or truncated one, more than 128 megapixels (found before any memory is
            taken), or other channels.
    """
    pixels = read_plain_jpeg(content)
    if pixels is None:
        with _opened(io.BytesIO(content)) as image:
            pixels = _pixels(image)
    return pixels if channels in (None, pixels.shape[2]) else _with_channels(pixels, channels)


def read_plain_jpeg(content: bytes) -> Shaped[ndarray, "h w c"] | None:
    """The pixels of a JPEG that is RGB or grey and that libjpeg reads without a complaint; None for any other file."""
    if not content.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours in ("CMYK", "YCCK") or int(height) * int(width) > LARGEST_PIXELS:
            return None
        return simplejpeg.decode_jpeg(content, "GRAY" if colours == "Gray" else "RGB")
    except ValueError:
        return None


@contextmanager
def _opened(file: Path | io.BytesIO) -> Iterator[ImageFile.ImageFile]:
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > LARGEST_PIXELS:
                raise ValueError(f"{image.width}×{image.height} pixels, allowed are at most {LARGEST_PIXELS:,}")
            yield image
    except UnidentifiedImageError:
        raise ValueError(f"no image file of a known kind ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"allowed are at most {LARGEST_PIXELS:,} pixels: {error}") from None
    except (ValueError, FileNotFoundError, PermissionError, IsADirectoryError, MemoryError):
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
        raise ValueError(f"damaged image file ({type(error).__name__}: {error})") from None


def _header(image: ImageFile.ImageFile) -> Header:
    """
    Raises:
        ValueError: values that Pillow cannot read as they are.
    """
    size = (image.height, image.width)
    layout = _layout(image)
    match image.mode:
        case "I;16" | "I;16L" | "I;16B" | "I;16N" if layout != "I;12":
            return Header(*size, 1, 16)
        case "I" if image.format == "PPM":
            return Header(*size, 1, 16)
        case "1" | "L" | "LA" | "La" | "P" | "PA" | "RGB" | "RGBX" | "RGBA" | "RGBa" | "CMYK" | "YCbCr":
            if ";16" in layout:
                raise ValueError("colour of 16 bits a channel cannot be read: convert the file to 8 bits")
            if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
                return Header(*size, 4, 8)
            # A GIF always has a palette, also where its colours happen to be greys.
            return Header(*size, 1 if image.mode in ("1", "L") and image.format != "GIF" else 3, 8)
        case _:
            raise ValueError(f"values of kind {layout or image.mode} cannot be read: convert the file to 8 or 16 bits")


def _layout(image: ImageFile.ImageFile) -> str:
    """Pillow's name for the values in the file, such as RGB;16B."""
    arguments = image.tile[0].args if image.tile else ""
    if image.format == "PPM" and isinstance(arguments, tuple) and arguments[-1] > 255:
        return f"{arguments[0]};16"
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _pixels(image: ImageFile.ImageFile) -> Shaped[ndarray, "h w c"]:
    height, width, channels, num_bits = _header(image)
    if num_bits == 16:
        return np.asarray(image).astype(np.uint16).reshape(height, width, 1)
    if image.mode == "CMYK" and image.format != "TIFF" and "adobe" not in image.info:
        inks = ImageChops.invert(image)  # Pillow inverted it as if the marker were there
        return np.array(inks.convert("RGB"))
    return np.array(image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])).reshape(height, width, channels)


def _with_channels(pixels: Shaped[ndarray, "h w c"], channels: int) -> Shaped[ndarray, "h w d"]:
    found = pixels.shape[2]
    opaque = np.iinfo(pixels.dtype).max
    match found, channels:
        case 4, 3 if (pixels[:, :, 3] == opaque).all():
            return np.ascontiguousarray(pixels[:, :, :3])
        case 4, 3:
            raise ValueError("some pixels are transparent, expected 3 channels: put the image on a background first")
        case 1, 3:
            return np.repeat(pixels, 3, axis=2)
        case ((1 | 3), 4):
            colours = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
            return np.concatenate([colours, np.full_like(pixels[:, :, :1], opaque)], axis=2)
        case _:
            raise ValueError(f"{found} channels, expected {channels}")
