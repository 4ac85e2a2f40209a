"""Against the pixels that went in, closed forms for inks, and the same files damaged."""

import io
import random
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from sklearn.datasets import load_sample_image

from attvae.data.image_file import Header, read_header, read_pixels, read_plain_jpeg

PHOTO = load_sample_image("flower.jpg")[100:133, 200:247]
GREY = PHOTO[:, :, 1]


def file_of(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG by the format's definition (ISO/IEC 15948), which Pillow cannot write in all its kinds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["PNG", "BMP", "PPM", "TIFF", "WEBP"])
def test_colour_comes_back(format: str) -> None:
    content = file_of(Image.fromarray(PHOTO), format, **({"lossless": True} if format == "WEBP" else {}))
    assert np.array_equal(read_pixels(content), PHOTO)
    assert read_header(content) == Header(33, 47, 3, 8)


@pytest.mark.parametrize("format", ["PNG", "BMP", "PPM", "TIFF"])
def test_grey_comes_back_and_becomes_colour_where_asked(format: str) -> None:
    content = file_of(Image.fromarray(GREY), format)
    assert read_header(content) == Header(33, 47, 1, 8)
    assert np.array_equal(read_pixels(content), GREY[:, :, None])
    assert np.array_equal(read_pixels(content, 3), np.stack([GREY] * 3, axis=2))
    rgba = read_pixels(content, 4)
    assert np.array_equal(rgba[:, :, 0], GREY)
    assert (rgba[:, :, 3] == 255).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_dropped_only_where_it_says_nothing(format: str) -> None:
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    alpha = np.full(GREY.shape, 255, np.uint8)
    alpha[3, 4] = 254
    rgba = np.dstack([PHOTO, alpha])
    content = file_of(Image.fromarray(rgba), format, **options)
    assert read_header(content).channels == 4
    assert np.array_equal(read_pixels(content), rgba)
    with pytest.raises(ValueError, match="transparent"):
        read_pixels(content, 3)
    rgba[3, 4, 3] = 255
    assert np.array_equal(read_pixels(file_of(Image.fromarray(rgba), format, **options), 3), PHOTO)


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_palettes(format: str) -> None:
    """A chessboard of red and half-green, then with red made transparent."""
    board = Image.fromarray((np.indices((8, 8)).sum(0) % 2).astype(np.uint8), "P")
    board.putpalette([255, 0, 0, 0, 128, 0])
    content = file_of(board, format)
    pixels = read_pixels(content)
    assert read_header(content).channels == pixels.shape[2] == 3
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert pixels[0, 1].tolist() == [0, 128, 0]
    content = file_of(board, format, transparency=0)
    pixels = read_pixels(content)
    assert read_header(content).channels == pixels.shape[2] == 4
    assert pixels[0, 0, 3] == 0
    assert pixels[0, 1].tolist() == [0, 128, 0, 255]


def test_first_frame() -> None:
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 200)]
    content = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (read_pixels(content) == 10).all()


def test_16_bits() -> None:
    deep = np.arange(33 * 47, dtype=np.uint16).reshape(33, 47) * 41 + 7
    for format in ("PNG", "TIFF", "PPM"):
        content = file_of(Image.fromarray(deep), format)
        assert read_header(content) == Header(33, 47, 1, 16)
        pixels = read_pixels(content)
        assert pixels.dtype == np.uint16
        assert np.array_equal(pixels[:, :, 0], deep)
    rows = b"".join(b"\0" + row.tobytes() for row in deep.astype(">u2"))
    assert np.array_equal(read_pixels(png(47, 33, 16, 0, rows))[:, :, 0], deep)


@pytest.mark.parametrize(("colour", "values"), [(2, 3), (4, 2), (6, 4)])
def test_colour_of_16_bits_is_refused(colour: int, values: int) -> None:
    """Pillow would read each of these as 8 bits without a word."""
    content = png(2, 2, 16, colour, (b"\0" + bytes(2 * 2 * values)) * 2)
    for read in (read_header, read_pixels):
        with pytest.raises(ValueError, match="16 bits"):
            read(content)
    with pytest.raises(ValueError, match="16 bits"):
        read_pixels(b"P6 2 1 65535\n" + bytes(12))


def test_floating_point_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_pixels(file_of(Image.fromarray(GREY.astype(np.float32)), "TIFF"))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_jpeg_is_what_pillow_reads(options: dict) -> None:
    for image in (Image.fromarray(PHOTO), Image.fromarray(GREY)):
        content = file_of(image, "JPEG", **options)
        expected = np.asarray(Image.open(io.BytesIO(content))).reshape(33, 47, -1)
        assert read_plain_jpeg(content) is not None
        assert np.array_equal(read_pixels(content), expected)
        assert read_pixels(content, 3).shape == (33, 47, 3)
        assert read_header(content) == Header(33, 47, expected.shape[2], 8)
    assert np.array_equal(read_pixels(content, 3)[:, :, 2], expected[:, :, 0])


def test_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    assert read_pixels(file_of(Image.fromarray(PHOTO), "JPEG", exif=exif)).shape == PHOTO.shape


INKS = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 0, 0]], [[0, 0, 255, 0], [0, 0, 0, 255], [51, 102, 153, 51]]])
# R = 255 (1 - C) (1 - K), and so on.
LIGHT = np.array([[[255, 255, 255], [0, 255, 255], [255, 0, 255]], [[255, 255, 0], [0, 0, 0], [163, 122, 82]]])


def cmyk_jpeg(inks: np.ndarray, ycck: bool) -> bytes:
    """Fields of 16×16 pixels of each ink, stored inverted, as is the custom with Adobe's marker."""
    fields = np.ascontiguousarray(255 - inks.astype(np.uint8)).repeat(16, 0).repeat(16, 1)
    if ycck:
        return simplejpeg.encode_jpeg(fields, 100, "CMYK", "444")
    return file_of(Image.fromarray(255 - fields, "CMYK"), "JPEG", quality=100, subsampling=0)


@pytest.mark.parametrize("ycck", [False, True])
def test_inks_become_light(ycck: bool) -> None:
    content = cmyk_jpeg(INKS, ycck)
    assert simplejpeg.decode_jpeg_header(content)[2] == ("YCCK" if ycck else "CMYK")
    assert read_header(content) == Header(32, 48, 3, 8)
    assert read_plain_jpeg(content) is None
    assert np.abs(read_pixels(content, 3)[8::16, 8::16].astype(int) - LIGHT).max() <= 2


def test_inks_without_adobes_marker_are_not_inverted() -> None:
    content = cmyk_jpeg(255 - INKS, ycck=False)
    at = content.index(b"\xff\xee")
    content = content[:at] + content[at + 2 + int.from_bytes(content[at + 2 : at + 4], "big") :]
    assert np.abs(read_pixels(content, 3)[8::16, 8::16].astype(int) - LIGHT).max() <= 2


def test_other_channels_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 channels, expected 1"):
        read_pixels(file_of(Image.fromarray(PHOTO), "PNG"), 1)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (12_000, 11_000)])
def test_too_large_is_refused_by_the_header(width: int, height: int) -> None:
    jpeg = bytearray(file_of(Image.fromarray(PHOTO), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", height, width)
    tracemalloc.start()
    for content in (png(width, height, 8, 2, bytes(100)), bytes(jpeg)):
        for read in (read_header, read_pixels):
            with pytest.raises(ValueError, match=rf"at most 128,000,000|{width}×{height}"):
                read(content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM"])
def test_truncated(format: str) -> None:
    content = file_of(Image.fromarray(PHOTO), format)
    for part in (0, 1, 10, len(content) // 2, len(content) - 100):
        with pytest.raises(ValueError, match=r"."):
            read_pixels(content[:part])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP", "PPM"])
def test_damage_is_a_value_error_or_a_picture(format: str) -> None:
    content = file_of(Image.fromarray(PHOTO), format)
    chance = random.Random(format)
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(min(len(damaged), 600))] = chance.randrange(256)
        try:
            answer = read_pixels(bytes(damaged)).dtype.name
        except ValueError as error:
            answer = str(error)
        assert answer
        assert "0x" not in answer  # no addresses: a preparation repeats to the byte


def test_programs_are_not_started() -> None:
    with pytest.raises(ValueError, match="no image file of a known kind"):
        read_pixels(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
