import io

import numpy as np
import pytest
from PIL import Image

from attvae.data.decode import Sample, decode
from attvae.spec import DataSpec

RGB = DataSpec(height=4, width=6, channels=3, num_bits=8, max_value=255)
GREY = DataSpec(height=4, width=6, channels=1, num_bits=5, max_value=16)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def picture(array: np.ndarray, format: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, format)
    return file.getvalue()


def sample(extension: str, content: bytes) -> Sample:
    return {"__key__": "000000003", "__url__": "data/train-000000.tar", extension: content, "cls": b"1"}


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def test_npy(rgb: np.ndarray) -> None:
    assert np.array_equal(decode(sample("npy", npy(rgb)), RGB)["pixels"], rgb)


def test_png(rgb: np.ndarray) -> None:
    assert np.array_equal(decode(sample("png", picture(rgb, "PNG")), RGB)["pixels"], rgb)
    grey = rgb[:, :, 0] % 17
    assert np.array_equal(decode(sample("png", picture(grey, "PNG")), GREY)["pixels"], grey[:, :, None])


@pytest.mark.parametrize("extension", ["jpg", "jpeg"])
def test_jpeg(extension: str) -> None:
    red = np.full((4, 6, 3), (200, 10, 10), dtype=np.uint8)
    pixels = decode(sample(extension, picture(red, "JPEG")), RGB)["pixels"]
    assert np.abs(pixels.astype(int) - red).max() <= 3


@pytest.mark.parametrize(
    ("broken", "spec", "complaint"),
    [
        (sample("json", b"{}"), RGB, r"no image: expected a member \.npy"),
        (sample("npy", npy(np.zeros((4, 5, 3), np.uint8))), RGB, r"uint8 \(4, 5, 3\), .* says uint8 \(4, 6, 3\)"),
        (sample("npy", npy(np.zeros((4, 6, 3), np.float32))), RGB, r"found float32"),
        (sample("npy", npy(np.full((4, 6, 1), 17, np.uint8))), GREY, r"found the value 17, .* at most 16"),
        (sample("npy", npy(np.zeros((4, 6, 3), np.uint8))[:-1]), RGB, r"cannot reshape|buffer"),
        (sample("npy", npy(np.zeros((4, 6, 3), np.uint8))[:20]), RGB, r"header"),
        (sample("npy", b""), RGB, r"magic"),
        (sample("npy", npy(np.zeros((4, 6, 3), object))), RGB, r"expected plain numbers"),
        (sample("npy", npy(np.asfortranarray(np.zeros((4, 6, 3), np.uint8)))), RGB, r"Fortran order True"),
        (sample("png", picture(np.zeros((5, 6), np.uint8), "PNG")), RGB, r"found uint8 \(5, 6, 3\)"),
        (sample("png", picture(np.arange(72, dtype=np.uint8).reshape(4, 6, 3), "PNG")), GREY, r"channels"),
        (sample("png", picture(np.arange(72, dtype=np.uint8).reshape(4, 6, 3), "PNG")[:50]), RGB, r"truncated"),
        (sample("png", b"no picture"), RGB, r"no image file"),
    ],
)
def test_what_is_not_the_image_of_the_spec_is_named(broken: Sample, spec: DataSpec, complaint: str) -> None:
    with pytest.raises(ValueError, match=rf"^shard data/train-000000\.tar, sample 000000003: .*{complaint}"):
        decode(broken, spec)


def test_a_flipped_bit_in_a_png(rgb: np.ndarray) -> None:
    content = bytearray(picture(rgb, "PNG"))
    content[content.index(b"IDAT") + 10] ^= 1
    with pytest.raises(ValueError, match="sample 000000003"):
        decode(sample("png", bytes(content)), RGB)


def test_images_of_any_size_are_scaled_where_that_is_wanted() -> None:
    """The centre square of 8 × 12 is columns 2 to 9; its boxes are of 2 × 2."""
    large = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    square = RGB.model_copy(update={"width": 4})
    pixels = decode(sample("png", picture(large, "PNG")), square, scale=True)["pixels"]
    boxes = large[:, 2:10].reshape(4, 2, 4, 2, 3).astype(int).sum((1, 3))
    assert np.abs(pixels - boxes / 4).max() <= 0.5
    with pytest.raises(ValueError, match=r"found uint8 \(8, 12, 3\)"):
        decode(sample("png", picture(large, "PNG")), square)
