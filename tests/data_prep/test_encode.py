import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from attvae.data.manifest import Format
from attvae.spec import DataSpec
from data_prep.encode import check_format, encode


def spec(channels: int, num_bits: int = 8, size: int = 32) -> DataSpec:
    return DataSpec(height=size, width=size, channels=channels, num_bits=num_bits, max_value=2**num_bits - 1)


@pytest.fixture
def patch() -> np.ndarray:
    return load_sample_image("china.jpg")[200:232, 300:332]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_raw_is_what_numpy_reads(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, channels), dtype=np.uint8)
    content = encode(pixels[:, ::-1], spec(channels), "raw")
    assert content[:8] == b"\x93NUMPY\x01\x00"
    assert np.array_equal(np.load(io.BytesIO(content), allow_pickle=False), pixels[:, ::-1])


@pytest.mark.parametrize("format", ["raw", "png"])
def test_sixteen_bits(format: Format) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (32, 32, 1)).astype(">u2")
    content = io.BytesIO(encode(pixels, spec(1, num_bits=16), format))
    found = np.load(content) if format == "raw" else np.asarray(Image.open(content))[:, :, None]
    assert found.dtype == np.dtype("<u2")
    assert np.array_equal(found, pixels)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_is_lossless(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, channels), dtype=np.uint8)
    image = Image.open(io.BytesIO(encode(pixels, spec(channels), "png")))
    assert (image.format, image.mode) == ("PNG", {1: "L", 3: "RGB", 4: "RGBA"}[channels])
    assert np.array_equal(np.asarray(image).reshape(pixels.shape), pixels)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_keeps_its_quality_and_all_colours(patch: np.ndarray, channels: int) -> None:
    """Quality 95 multiplies the standard's tables, whose first entry is 16, by 0.1.

    A coefficient of the (orthonormal) transform errs by at most half its table's entry, a pixel by 1/2 more.
    """
    image = Image.open(io.BytesIO(encode(patch[:, :, :channels], spec(channels), "jpg")))
    assert (image.format, image.mode) == ("JPEG", {1: "L", 3: "RGB"}[channels])
    assert image.quantization[0][0] == 2
    assert {layer[1:3] for layer in image.layer} == {(1, 1)}
    error = np.asarray(image).reshape(32, 32, -1) - patch[:, :, :channels].astype(float)
    assert np.abs(error.mean((0, 1))).max() < 1
    if channels == 1:
        assert np.sqrt(np.mean(error**2)) < np.sqrt(np.mean(np.square(image.quantization[0]))) / 2 + 0.5


def test_another_size_is_scaled_from_the_centre_square() -> None:
    """Blocks of 2×2 in a frame that the square leaves out."""
    blocks = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pixels = np.pad(blocks.repeat(2, 0).repeat(2, 1), ((0, 0), (10, 10), (0, 0)))
    assert np.array_equal(np.load(io.BytesIO(encode(pixels, spec(3), "raw"))), blocks)


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.zeros((32, 32, 1), np.uint8), "unequal channel counts: 1 in this image, 3 in the others"),
        (np.zeros((32, 32, 3), np.float32), "pixels of type float32"),
        (np.full((32, 32, 3), 256, np.uint16), "the value 256 among the pixels, expected at most 255"),
    ],
)
def test_pixels_that_are_not_the_specs(pixels: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        encode(pixels, spec(3), "raw")


def test_an_oblong_spec_cannot_be_scaled_to() -> None:
    oblong = DataSpec(height=4, width=6, channels=3, num_bits=8, max_value=255)
    with pytest.raises(ValueError, match="an image of 6×6 pixels, expected 4×6"):
        encode(np.zeros((6, 6, 3), np.uint8), oblong, "raw")


@pytest.mark.parametrize(
    ("channels", "num_bits", "format", "said"),
    [
        (4, 8, "jpg", "--format jpg holds 1 or 3 channels, the images have 4: choose raw or png"),
        (1, 16, "jpg", r"--format jpg holds the values 0\.\.255, the images have 0\.\.65535"),
        (1, 5, "jpg", r"--format jpg holds the values 0\.\.255, the images have 0\.\.31"),
        (2, 8, "png", "--format png holds 1, 3 or 4 channels, the images have 2: choose raw"),
        (3, 16, "png", "--format png holds 16 bits in 1 channel, the images have 3: choose raw"),
    ],
)
def test_formats_that_cannot_hold_the_images(channels: int, num_bits: int, format: Format, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_format(spec(channels, num_bits), format)


@pytest.mark.parametrize(
    ("channels", "num_bits", "format"), [(1, 8, "jpg"), (4, 8, "png"), (1, 16, "png"), (7, 16, "raw")]
)
def test_formats_that_can(channels: int, num_bits: int, format: Format) -> None:
    check_format(spec(channels, num_bits), format)
