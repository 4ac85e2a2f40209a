"""A manifest for webdataset tars that are there already. They stay as they are."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import NamedTuple

from attvae.data.decode import npy_header
from attvae.data.image_file import read_header
from attvae.data.manifest import FILE, SPLITS, Format, Manifest, Split, fingerprint, xxh3
from attvae.data.shard import Shard
from attvae.data.tar import OpenShard
from attvae.spec import DataSpec
from data_prep.atomic import aside
from data_prep.process_pool import spread
from data_prep.progress import Progress
from data_prep.summary import print_summary
from data_prep.writer import INDEXED

# In the order in which the loader looks for them.
FORMATS: dict[str, Format] = {"npy": "raw", "png": "png", "jpg": "jpg", "jpeg": "jpg"}


class Kind(NamedTuple):
    """What the images of a data set share."""

    format: Format
    channels: int
    num_bits: int


class Contents(NamedTuple):
    """What a tar holds.

    Attributes:
        kinds: with the first sample of each.
        heights: the smallest and the largest.
        widths: the smallest and the largest.
    """

    shard: Shard
    kinds: dict[Kind, str]
    heights: tuple[int, int]
    widths: tuple[int, int]


def index(folder: Path, name: str, globs: Mapping[Split, str | None], size: int | None, workers: int = 1) -> None:
    """Writes manifest.json beside webdataset tars, whose images' headers say what they are.

    Args:
        globs: which tars are a split's; without one, those whose names begin with it.
        size: what images are cropped and scaled to when they are loaded; None where all have one size.

    Raises:
        ValueError: a split without tars, a tar that is damaged or holds no images or members that point out of it,
            images of different kinds or, without `size`, of different sizes; `folder` holds a prepared data set.
    """
    if (folder / FILE).exists() and (found := Manifest.read(folder)).version != INDEXED:
        raise ValueError(f"{folder} holds the data set {found.name!r}, which has its manifest")
    tars = sorted(path.name for path in folder.glob("[!.]*.tar") if path.is_file())
    if not tars:
        raise ValueError(f"{folder} holds no tars named *.tar" if folder.is_dir() else f"{folder} is no folder")
    parts = _assign(tars, globs)
    files = [file for split in SPLITS for file in parts[split]]
    progress = Progress(len(files), unit="shards")
    found_in: dict[str, Contents] = {}
    for contents in spread(partial(read_contents, folder), files, workers):
        found_in[contents.shard.file] = contents
        progress.add(1, contents.shard.bytes)
    progress.close()
    format, spec, any_size = _describe([found_in[file] for file in files], size)
    splits = {split: tuple(found_in[file].shard for file in parts[split]) for split in SPLITS}
    manifest = Manifest(
        name=name,
        version=INDEXED,
        source="webdataset tars",
        fingerprint=fingerprint(spec, splits),
        spec=spec,
        format=format,
        any_size=any_size,
        splits=splits,
    )
    with aside(folder / FILE) as file:
        file.write(manifest.model_dump_json(indent=1).encode() + b"\n")
    print_summary(manifest, dict.fromkeys(SPLITS, ()))
    if left := sorted(set(tars) - set(files)):
        print(f"{len(left):,} tars belong to no split: {', '.join(left[:3])}{' ...' if left[3:] else ''}")
    print(f"{folder} is indexed, fingerprint {manifest.fingerprint}")


def _assign(tars: Sequence[str], globs: Mapping[Split, str | None]) -> dict[Split, list[str]]:
    """The tars of each split, in the order of their names."""
    parts: dict[Split, list[str]] = {}
    owners: dict[str, Split] = {}
    for split, glob in globs.items():
        if glob is None:
            continue
        parts[split] = [file for file in tars if fnmatchcase(file, glob)]
        if not parts[split]:
            raise ValueError(f"--{split} {glob!r} fits none of the {len(tars):,} tars, such as {tars[0]}")
        for file in parts[split]:
            if file in owners:
                raise ValueError(f"{file} belongs to --{owners[file]} and to --{split}: a shard is of one split")
            owners[file] = split
    for split in SPLITS:
        if split not in parts:
            begins = re.compile(split, re.IGNORECASE)
            parts[split] = [file for file in tars if begins.match(file) and file not in owners]
    if missing := [split for split in SPLITS if not parts[split]]:
        free = [file for file in tars if file not in owners]
        example = " ".join(f"--{split} '{file}'" for split, file in zip(missing, reversed(free), strict=False))
        raise ValueError(
            f"no tars for {' and '.join(missing)} among the {len(tars):,}, {tars[0]} to {tars[-1]}: say which, "
            f"whole tars only, for example {example}"
        )
    return parts


def read_contents(folder: Path, file: str) -> Contents:
    """Reads a tar's headers and those of its images.

    Raises:
        ValueError: it is damaged, a member points out of it, or a sample has no image that can be read.
    """
    path = folder / file
    with path.open("rb") as opened:
        tar = OpenShard(str(path), opened.fileno(), 0)
    entries, damage = tar.index()
    if damage or not entries:
        raise ValueError(f"shard {path} {damage or 'holds no samples'}")
    kinds: dict[Kind, str] = {}
    heights: set[int] = set()
    widths: set[int] = set()
    for key, members in entries:
        named = {member.extension: member for member in members}
        try:
            extension = next(extension for extension in FORMATS if extension in named)
        except StopIteration:
            raise ValueError(
                f"shard {path}, sample {key}: no image among its members "
                f"({', '.join(f'.{extension}' for extension in named)}), expected {', '.join(f'.{e}' for e in FORMATS)}"
            ) from None
        _, offset, length, *_ = named[extension]
        try:
            height, width, kind = _header(extension, tar.content[offset : offset + length])
        except ValueError as error:
            raise ValueError(f"shard {path}, sample {key}: {error}") from None
        kinds.setdefault(kind, f"{file}, sample {key}")
        heights.add(height)
        widths.add(width)
    shard = Shard(file=file, samples=len(entries), bytes=path.stat().st_size, xxh3=xxh3(path))
    return Contents(shard, kinds, (min(heights), max(heights)), (min(widths), max(widths)))


def _header(extension: str, content: bytes) -> tuple[int, int, Kind]:
    """(height, width, kind) of an image, from the beginning of its file."""
    if extension == "npy":
        dtype, shape, _ = npy_header(content)
        if dtype not in ("u1", "<u2") or len(shape) != 3:
            raise ValueError(f"an array {dtype} {shape}, expected uint8 or uint16 (height, width, channels)")
        return shape[0], shape[1], Kind("raw", shape[2], 8 * dtype.itemsize)
    height, width, channels, num_bits = read_header(content)
    return height, width, Kind(FORMATS[extension], channels, num_bits)


def _describe(contents: Sequence[Contents], size: int | None) -> tuple[Format, DataSpec, bool]:
    """(format, spec, any_size) of all images together."""
    kinds: dict[Kind, str] = {}
    for found in contents:
        kinds = found.kinds | kinds
    (kind, place), *others = kinds.items()
    for other, elsewhere in others:
        if other.format != kind.format:
            raise ValueError(f"images of two formats: {kind.format} in {place}, {other.format} in {elsewhere}")
        if other.num_bits != kind.num_bits:
            raise ValueError(f"unequal bits: {kind.num_bits} in {place}, {other.num_bits} in {elsewhere}")
        # Photographs have some grey ones among them, which are loaded as RGB.
        if kind.format != "jpg" and other.channels != kind.channels:
            raise ValueError(f"unequal channel counts: {kind.channels} in {place}, {other.channels} in {elsewhere}")
    channels = max(found.channels for found in kinds)
    height, width = (
        (min(low for low, _ in ranges), max(high for _, high in ranges))
        for ranges in ([found.heights for found in contents], [found.widths for found in contents])
    )
    if size is None and (height[0] != height[1] or width[0] != width[1]):
        raise ValueError(
            f"the images have {height[0]} to {height[1]} rows and {width[0]} to {width[1]} columns: "
            f"give --size N, what they are cropped and scaled to when they are loaded"
        )
    spec = DataSpec(
        height=size or height[0],
        width=size or width[0],
        channels=channels,
        num_bits=kind.num_bits,
        max_value=2**kind.num_bits - 1,
    )
    return kind.format, spec, {*height, *width} != {spec.height, spec.width}
