"""Any images: all image files below a folder.

Splits are its folders train, val (or valid, validation) and test where there is a train; those that are missing are cut
from train (`splits`). Otherwise all three are cut from all images. Where all images lie in folders, and these are more
than one, the first folder (below the split) is the class; classes are numbered in the order of their names.
"""

from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int64, Shaped
from numpy import ndarray

from attvae.data.image_file import Header, read_header, read_pixels
from attvae.data.manifest import Format, Split
from attvae.data.resize import centre_square
from attvae.spec import DataSpec
from data_prep.counted import counted
from data_prep.dataset import Dataset
from data_prep.source_files import FolderFiles, ImageFiles, Names, found_in, identity, list_folder
from data_prep.splits import complete

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"})
FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}


def dataset(src: Path, size: int | None, format: Format, bits: int | None) -> Dataset:
    """The images below `src`, all of one channel count (1, 3, or 4: RGBA); damaged files are rejected at reading.

    Args:
        size: of the centre square, scaled with a box filter; None: all images have one size already.
        bits: the top bits of each value that are kept; None: all 8. Needed for images of 16 bits.

    Raises:
        ValueError: no images, or images that are not alike: names two of them.
    """
    found_in(src)
    folders = _split_folders(src)
    names = {split: list_folder(src, folder, SUFFIXES) for split, folder in folders.items()}
    every = [name for split in names.values() for name in split]
    if empty := [split for split, held in names.items() if not held]:
        where = src / folders[empty[0]]
        raise ValueError(f"{where} has no images ({', '.join(sorted(SUFFIXES))}): found {found_in(where)}")
    kind = _common_header(src, every, size)
    kept = _kept_bits(kind, bits)
    height, width = (kind.height, kind.width) if size is None else (size, size)
    content = partial(_pixels, channels=kind.channels, size=size, num_bits=kind.num_bits, kept=kept)
    labels = _labels(names, depth=1 if folders["train"] else 0)
    images = {
        split: ImageFiles(FolderFiles(src, Names.of(held)), content, labels[split]) for split, held in names.items()
    }
    return Dataset(
        name=f"{src.resolve().name}{size or ''}",
        version="1",
        source=f"image files of the folder {src.resolve().name}",
        identity=identity(src, every),
        spec=DataSpec(height=height, width=width, channels=kind.channels, num_bits=kept, max_value=2**kept - 1),
        format=format,
        splits=complete(images),
    )


def _split_folders(src: Path) -> dict[Split, str]:
    """The folder of each split in `src`; all of `src` as train, if there is none."""
    found: dict[Split, str] = {}
    for split, names in FOLDERS.items():
        held = [name for name in names if (src / name).is_dir()]
        if len(held) > 1:
            raise ValueError(f"{src} has the folders {' and '.join(held)}, both for {split}: keep one")
        if held:
            found[split] = held[0]
    if found and "train" not in found:
        raise ValueError(f"{src} has a folder {next(iter(found.values()))}, but no folder train")
    return found or {"train": ""}


def _labels(names: dict[Split, list[str]], depth: int) -> dict[Split, Int64[ndarray, "n"] | None]:
    """The numbers of the classes of each split's images: None where some lie in no folder.

    Args:
        depth: of the class among the folders of a name.
    """
    folders = {split: [_folder(name, depth) for name in held] for split, held in names.items()}
    classes = sorted({folder for held in folders.values() for folder in held} - {None}, key=str)
    number_of = {folder: number for number, folder in enumerate(classes)}
    return {
        split: None if None in held or len(classes) < 2 else np.array([number_of[folder] for folder in held])
        for split, held in folders.items()
    }


def _folder(name: str, depth: int) -> str | None:
    parts = name.split("/", depth + 1)
    return parts[depth] if len(parts) > depth + 1 else None


def _common_header(src: Path, names: list[str], size: int | None) -> Header:
    """What all images have in common; those with damaged headers are passed over.

    Raises:
        ValueError: two images differ, or none can be read.
    """
    first: tuple[str, Header] | None = None
    damage = ""
    for name in counted(names, f"headers read in {src}"):
        try:
            header = read_header(src / name)
        except ValueError as error:
            damage = damage or f"{name}: {error}"
            continue
        first = first or (name, header)
        other, common = first
        if header.channels != common.channels:
            raise ValueError(
                f"unequal channel counts in {src}: {other} has {common.channels}, {name} has {header.channels}: "
                "convert the files to one kind"
            )
        if header.num_bits != common.num_bits:
            raise ValueError(
                f"unequal depths in {src}: {other} has {common.num_bits} bits, {name} has {header.num_bits}: "
                "convert the files to one kind"
            )
        if size is None and (header.height, header.width) != (common.height, common.width):
            raise ValueError(
                f"unequal sizes in {src}: {other} has {common.height}×{common.width} pixels, {name} has "
                f"{header.height}×{header.width}: give --size, the pixels of a side to crop and scale to"
            )
    if first is None:
        raise ValueError(f"none of the {len(names)} images in {src} can be read, the first one since {damage}")
    return first[1]


def _kept_bits(kind: Header, bits: int | None) -> int:
    if bits is None and kind.num_bits == 16:
        raise ValueError("the images have 16 bits: give --bits 16 to keep them, or --bits 8 for the top eight")
    kept = kind.num_bits if bits is None else bits
    if not 1 <= kept <= kind.num_bits:
        raise ValueError(f"--bits {bits}: the images have {kind.num_bits}, allowed are 1 to {kind.num_bits}")
    return kept


def _pixels(content: bytes, channels: int, size: int | None, num_bits: int, kept: int) -> Shaped[ndarray, "h w c"]:
    pixels = read_pixels(content, channels)
    if kept == num_bits:
        return pixels
    scaled = pixels if size is None else centre_square(pixels, size)  # before values lose bits
    return (scaled >> (num_bits - kept)).astype(np.uint8 if kept <= 8 else np.uint16)
