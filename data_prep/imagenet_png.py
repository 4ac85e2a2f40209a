"""Downsampled ImageNet in its older form (van den Oord et al., Pixel Recurrent Neural Networks, 2016): PNG files.

Distributed as train_32x32.tar and valid_32x32.tar, or 64x64; 1,281,149 and 49,999 images, without classes. Papers
report their figures on the validation files, which are `test` here; `val` is cut from the training files.
"""

from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from attvae.data.image_file import read_pixels
from attvae.data.manifest import Format
from attvae.spec import DataSpec
from data_prep.counted import counted
from data_prep.dataset import Dataset
from data_prep.source_files import Files, FolderFiles, ImageFiles, Names, found_in, identity, list_folder
from data_prep.splits import train_and_val
from data_prep.tar_members import TarMembers, list_tar

SIZES = (32, 64)


def dataset(src: Path, format: Format) -> Dataset:
    """The images of one size, from a folder with the two tars, or with them unpacked.

    Raises:
        ValueError: files are missing or damaged, or there are images of both sizes.
    """
    found = found_in(src)
    held = [size for size in SIZES if _source(src, f"train_{size}x{size}")]
    if len(held) != 1:
        expected = " or ".join(f"train_{size}x{size}.tar and valid_{size}x{size}.tar" for size in SIZES)
        raise ValueError(f"{src} should hold images of one size: {expected}, packed or as folders; found {found}")
    [size] = held
    train, train_sources = _files(src, f"train_{size}x{size}")
    valid, valid_sources = _files(src, f"valid_{size}x{size}")
    content = partial(_pixels, size=size)
    return Dataset(
        name=f"imagenet{size}-png",
        version="png-vandenoord",
        source=f"downsampled ImageNet {size}×{size} of van den Oord et al. (PNG); test is the valid file. Bits per "
        "dimension are not comparable with those on the newer npz files of image-net.org: 0.26 apart for one model",
        identity=identity(src, train_sources + valid_sources),
        spec=DataSpec(height=size, width=size, channels=3, num_bits=8, max_value=255),
        format=format,
        splits={**train_and_val(ImageFiles(train, content)), "test": ImageFiles(valid, content)},
    )


def _source(src: Path, name: str) -> Path | None:
    return next((path for path in (src / f"{name}.tar", src / name) if path.exists()), None)


def _files(src: Path, name: str) -> tuple[Files, list[str]]:
    """The PNG files in a tar or folder, sorted by name, and the names of the sources."""
    path = _source(src, name)
    if path is None:
        raise ValueError(f"{src} has neither {name}.tar nor a folder {name}: found {found_in(src)}")
    if path.is_dir():
        if not (names := list_folder(src, name, frozenset({".png"}))):
            raise ValueError(f"{path} holds no PNG files: found {found_in(path)}")
        return FolderFiles(src, Names.of(names)), names
    members = counted(list_tar(path), f"images in {path}")
    return TarMembers.of(path, sorted(member for member in members if member.name.endswith(".png"))), [path.name]


def _pixels(content: bytes, size: int) -> UInt8[ndarray, "h w 3"]:
    pixels = read_pixels(content, 3)
    if pixels.shape != (size, size, 3) or pixels.dtype != np.uint8:
        raise ValueError(f"{pixels.dtype} of {pixels.shape[0]}×{pixels.shape[1]}, expected uint8 of {size}×{size}")
    return pixels
