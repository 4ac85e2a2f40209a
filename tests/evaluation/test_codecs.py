from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attvae.evaluation.codecs import CODECS, Codec, codec_bytes
from attvae.spec import DataSpec

HOW = {"png": {"optimize": True}, "webp": {"lossless": True, "quality": 100, "method": 6}}


def spec_of(images: np.ndarray, num_bits: int = 8) -> DataSpec:
    _, channels, height, width = images.shape
    return DataSpec(height=height, width=width, channels=channels, num_bits=num_bits, max_value=2**num_bits - 1)


def smooth_images(channels: int) -> np.ndarray:
    """Ramps with a little noise, as compressible as photographs are, and repeated, so that the settings matter."""
    rng = np.random.default_rng(0)
    ramp = np.arange(6)[:, None] * 3 + np.arange(10)[None] * 5
    images = ramp + rng.integers(0, 8, (9, channels, 6, 10)) + rng.integers(0, 100, (9, channels, 1, 1))
    return np.tile(images.astype(np.uint8), (2, 2))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("channels", [1, 3])
def test_against_the_sizes_of_files_on_disk(tmp_path: Path, channels: int, codec: Codec) -> None:
    images = smooth_images(channels)
    total_bytes = 0
    for number, image in enumerate(images):
        path = tmp_path / f"{number}.{codec}"
        planes = [Image.frombytes("L", (20, 12), plane.tobytes()) for plane in image]
        picture = planes[0] if channels == 1 else Image.merge("RGB", planes)
        picture.save(path, **HOW[codec])
        with Image.open(path) as read:
            assert list(read.convert(picture.mode).getdata()) == list(picture.getdata())
        total_bytes += path.stat().st_size
    expected = 8 * total_bytes / images.size
    batches = torch.split(torch.tensor(images), 4)
    assert 8 * sum(codec_bytes(x, spec_of(images), codec) for x in batches) / images.size == pytest.approx(
        expected, rel=1e-14
    )
    assert 0 < expected < 8


@pytest.mark.parametrize("codec", CODECS)
def test_smooth_images_need_fewer_bits_than_noise(codec: Codec) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (9, 3, 12, 20), dtype=np.uint8)
    smooth = smooth_images(3)
    assert 8 * codec_bytes(torch.tensor(noise), spec_of(noise), codec) / noise.size > 8  # the headers come on top
    assert 8 * codec_bytes(torch.tensor(smooth), spec_of(smooth), codec) / smooth.size < 7


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("num_bits", "channels"), [(5, 1), (5, 3), (16, 1), (8, 2), (8, 4)])
def test_other_depths_and_channels_are_refused(codec: Codec, num_bits: int, channels: int) -> None:
    images = np.zeros((1, channels, 4, 4), dtype=np.uint8)
    with pytest.raises(ValueError, match=f"{codec} is measured for 8 bits .* not {num_bits} and {channels}"):
        codec_bytes(torch.tensor(images), spec_of(images, num_bits), codec)
