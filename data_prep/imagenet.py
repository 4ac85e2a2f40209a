"""ImageNet of ILSVRC 2012: 1,281,167 photographs of 1,000 classes, and 50,000 for validation, which are `test` here.

Most papers report their figures on the official validation images; `val` is cut from the training images. Classes are
numbered in the order of their WordNet ids. The tars are read where they lie, by position, and not unpacked.
"""

import io
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import Int16
from numpy import ndarray
from scipy.io import loadmat

from attvae.data.image_file import read_pixels, read_plain_jpeg
from attvae.data.manifest import Format
from attvae.spec import DataSpec
from data_prep.counted import counted
from data_prep.dataset import Dataset
from data_prep.source_files import Files, FolderFiles, ImageFiles, Names, found_in, identity, list_folder
from data_prep.splits import train_and_val
from data_prep.tar_members import Member, TarMembers, list_tar

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
SUFFIXES = frozenset({".jpeg", ".jpg", ".png"})
LOADED_SIZE = 256


class Labelled(NamedTuple):
    """Images with the numbers of their classes, and the files of the source that they come from."""

    files: Files
    labels: Int16[ndarray, "n"]
    sources: list[str]


def dataset(src: Path, size: int | None, format: Format) -> Dataset:
    """ImageNet from a folder with the tars as distributed, or with folders train/<wnid>/ and val/<wnid>/, or flat val/.

    Args:
        size: pixels of the centre square, scaled with a box filter; None keeps the JPEG files as they are. Those few
            that are CMYK, or no JPEG in spite of their names, then become RGB JPEGs (quality 95, colours in full).

    Raises:
        ValueError: files are missing, damaged, or do not fit each other.
    """
    if size is None and format != "jpg":
        raise ValueError(f"--format {format} stores images of one size: give --size, or --format jpg for the originals")
    found = found_in(src)
    if (src / TRAIN_TAR).is_file():
        train, wnids = _train_tar(src)
    elif (src / "train").is_dir():
        train, wnids = _train_folders(src)
    else:
        raise ValueError(f"{src} has neither {TRAIN_TAR} nor a folder train: found {found}")
    if (src / VAL_TAR).is_file():
        val = _val_tar(src, wnids)
    elif (src / "val").is_dir():
        val = _val_folder(src, wnids)
    else:
        raise ValueError(f"{src} has neither {VAL_TAR} nor a folder val: found {found}")
    content = jpeg if size is None else partial(read_pixels, channels=3)
    side = LOADED_SIZE if size is None else size
    images = train_and_val(ImageFiles(train.files, content, train.labels))
    return Dataset(
        name=f"imagenet{size or ''}",
        version="ilsvrc2012-original" if size is None else "ilsvrc2012-box",
        source="ImageNet, ILSVRC 2012, image-net.org; test is the official validation set",
        identity=identity(src, train.sources + val.sources),
        spec=DataSpec(height=side, width=side, channels=3, num_bits=8, max_value=255),
        format=format,
        any_size=size is None,
        splits={**images, "test": ImageFiles(val.files, content, val.labels)},
    )


def jpeg(content: bytes) -> bytes:
    """An image file as a JPEG that every reader reads: itself where it is one, RGB or grey.

    Raises:
        ValueError: see `read_pixels`.
    """
    if read_plain_jpeg(content) is not None:
        return content
    return simplejpeg.encode_jpeg(read_pixels(content, 3), quality=95, colorspace="RGB", colorsubsampling="444")


def _train_tar(src: Path) -> tuple[Labelled, list[str]]:
    path = src / TRAIN_TAR
    classes = {Path(member.name).stem: member for member in list_tar(path)}
    if strange := [member.name for member in classes.values() if not member.name.endswith(".tar")]:
        raise ValueError(f"{path} should hold one tar for each class, found {strange[0]!r}")
    wnids = sorted(classes)

    def members() -> Iterator[Member]:
        for wnid in wnids:
            # Named as in the layout of class folders, so that both give the same samples.
            yield from sorted(_named(member, wnid) for member in list_tar(path, classes[wnid]))

    files = TarMembers.of(path, counted(members(), f"images in {path}"))
    return Labelled(files, _numbers(map(_folder, files.names), wnids), [TRAIN_TAR]), wnids


def _train_folders(src: Path) -> tuple[Labelled, list[str]]:
    names = _images_in(src, "train")
    if stray := next((name for name in names if "/" not in name), None):
        raise ValueError(f"{src / 'train' / stray} lies in no class folder: expected train/<wnid>/<image>")
    wnids = sorted(set(map(_folder, names)))
    files = FolderFiles(src / "train", Names.of(names))
    return Labelled(files, _numbers(map(_folder, names), wnids), [f"train/{name}" for name in names]), wnids


def _val_tar(src: Path, wnids: list[str]) -> Labelled:
    path = src / VAL_TAR
    members = sorted(counted(list_tar(path), f"images in {path}"))
    truth = _truth(src, len(members))
    files = TarMembers.of(path, [_named(member, wnid) for member, wnid in zip(members, truth, strict=True)])
    return Labelled(files, _numbers(truth, wnids), [VAL_TAR, DEVKIT])


def _val_folder(src: Path, wnids: list[str]) -> Labelled:
    # In the order of the tar: by the image's number, whatever its class.
    names = sorted(_images_in(src, "val"), key=_base)
    flat = not any("/" in name for name in names)
    truth = _truth(src, len(names)) if flat else list(map(_folder, names))
    sources = [f"val/{name}" for name in names] + [DEVKIT] * flat
    return Labelled(FolderFiles(src / "val", Names.of(names)), _numbers(truth, wnids), sources)


def _images_in(src: Path, split: str) -> list[str]:
    names = list_folder(src, split, SUFFIXES)
    if not names:
        raise ValueError(f"{src / split} holds no images: expected {split}/<wnid>/*.JPEG")
    return [name.removeprefix(f"{split}/") for name in names]


def _truth(src: Path, images: int) -> list[str]:
    """The WordNet ids of the validation images, in the order of their numbers."""
    path = src / DEVKIT
    if not path.is_file():
        raise ValueError(f"{src} has no {DEVKIT}, which tells the classes of the validation images")
    try:
        with tarfile.open(path, "r:gz") as kit:
            held = {_base(member.name): member for member in kit if member.isfile()}
            truth = kit.extractfile(held["ILSVRC2012_validation_ground_truth.txt"])
            meta = kit.extractfile(held["meta.mat"])
            assert truth
            assert meta
            numbers = [int(line) for line in truth.read().split()]
            synsets: Any = loadmat(io.BytesIO(meta.read()), squeeze_me=True)["synsets"]
        wnid_of = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in np.atleast_1d(synsets)}
        wnids = [wnid_of[number] for number in numbers]
    except (tarfile.TarError, EOFError, zlib.error, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): get it again") from None
    if len(wnids) != images:
        raise ValueError(f"{path} tells the classes of {len(wnids)} validation images, found are {images}")
    return wnids


def _numbers(wnids: Iterable[str], classes: list[str]) -> Int16[ndarray, "n"]:
    number_of = {wnid: number for number, wnid in enumerate(classes)}
    try:
        return np.array([number_of[wnid] for wnid in wnids], np.int16)
    except KeyError as unknown:
        raise ValueError(f"class {unknown} has validation images, but no training images") from None


def _named(member: Member, wnid: str) -> Member:
    return member._replace(name=f"{wnid}/{_base(member.name)}")


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _folder(name: str) -> str:
    return name.partition("/")[0]
