"""Writes a data set as webdataset shards and a manifest: the same source gives the same bytes."""

import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from attvae.data.manifest import FILE, Manifest, Shard, Split, fingerprint, xxh3
from attvae.spec import DataSpec

SHARD_SAMPLES = 500

Members = dict[str, bytes]
"""The files of a sample, by extension."""


@dataclass(frozen=True)
class Dataset:
    """What a converter knows. `version` changes whenever its images or their order do."""

    name: str
    version: str
    source: str
    spec: DataSpec
    splits: Mapping[Split, Callable[[], Iterator[Members]]]


def npy(pixels_HWC: UInt8[ndarray, "h w c"]) -> bytes:
    """An image as the content of a .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(pixels_HWC), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def prepare(dataset: Dataset, out: Path) -> None:
    """Writes the data set into `out`, or finds it there complete and intact and says so.

    Raises:
        ValueError: `out` holds another data set.
        OSError: `out` cannot be written.
    """
    if found := _find(dataset, out):
        print(f"{out} holds {found.name} complete and intact: nothing to do")
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / FILE).unlink(missing_ok=True)  # from here on the shards may not be what it says
    splits = {split: tuple(_write_shards(split, samples(), out)) for split, samples in dataset.splits.items()}
    manifest = Manifest(
        name=dataset.name,
        version=dataset.version,
        source=dataset.source,
        fingerprint=fingerprint(dataset.spec, splits),
        spec=dataset.spec,
        splits=splits,
    )
    with _aside(out / FILE) as file:
        file.write(manifest.model_dump_json(indent=1).encode() + b"\n")
    print(f"{out} is complete, fingerprint {manifest.fingerprint}")


def _find(dataset: Dataset, out: Path) -> Manifest | None:
    if not (out / FILE).exists():
        return None
    try:
        found = Manifest.read(out)
        if found.name == dataset.name:
            for split in found.splits:
                found.check_shards(split)
    except ValueError as fault:
        print(f"preparing again, since {fault}")
        return None
    if found.name != dataset.name:
        raise ValueError(f"{out} holds the data set {found.name!r}: choose another --out for {dataset.name!r}")
    return found if found.version == dataset.version else None


def _write_shards(split: Split, samples: Iterator[Members], out: Path) -> Iterator[Shard]:
    import webdataset  # takes two seconds, which a run with nothing to do should not

    numbered = enumerate(samples)
    shards = written = 0
    while chunk := list(islice(numbered, SHARD_SAMPLES)):
        path = out / f"{split}-{shards:06d}.tar"
        with _aside(path) as file, webdataset.TarWriter(file, encoder=False, mtime=0) as tar:
            for number, members in chunk:
                tar.write({"__key__": f"{number:09d}", **members})
        yield Shard(file=path.name, samples=len(chunk), bytes=path.stat().st_size, xxh3=xxh3(path))
        shards += 1
        written += len(chunk)
        if sys.stdout.isatty():
            print(f"{split}: {written} samples", end="\r", flush=True)
    print(f"{split}: {written} samples in {shards} shards")


@contextmanager
def _aside(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its name when it is complete and on the disk."""
    partial = path.with_name(f"{path.name}.tmp")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
