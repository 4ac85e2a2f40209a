"""Whether a prepared data set is what its manifest says, read in full."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

from attvae.data.decode import decode
from attvae.data.manifest import Manifest, xxh3
from attvae.data.shard import Shard
from attvae.data.tar import OpenShard
from data_prep.process_pool import spread
from data_prep.progress import Progress

LISTED = 20


class Finding(NamedTuple):
    """What is wrong with a shard, nothing if it is intact."""

    shard: Shard
    faults: list[str]


def verify(folder: Path, workers: int = 1) -> bool:
    """Compares every shard with the manifest: size, hash, number of samples; every file in it with its checksum, where
    the tar bears one; and decodes every image. Prints what is wrong, or that nothing is.

    Returns:
        Whether the data set is intact.

    Raises:
        ValueError: there is no manifest, or it is damaged.
    """
    manifest = Manifest.read(folder)
    listed = [shard for split in manifest.splits.values() for shard in split]
    samples = sum(shard.samples for shard in listed)
    progress = Progress(samples)
    faults: list[str] = []
    for finding in spread(partial(check_shard, folder, manifest), listed, workers):
        faults += finding.faults
        progress.add(finding.shard.samples, finding.shard.bytes)
    progress.close()
    for fault in faults[:LISTED]:
        print(f"wrong: {fault}")
    if len(faults) > LISTED:
        print(f"... and {len(faults) - LISTED:,} more")
    if faults:
        print(f"{folder} is damaged: {len(faults):,} faults")
    else:
        print(f"{folder} is intact: {samples:,} samples in {len(listed):,} shards, fingerprint {manifest.fingerprint}")
    return not faults


def check_shard(folder: Path, manifest: Manifest, shard: Shard) -> Finding:
    """Reads a shard in full."""
    path = folder / shard.file
    try:
        with path.open("rb") as file:
            return Finding(shard, list(_faults(path, file, manifest, shard)))
    except FileNotFoundError:
        return Finding(shard, [f"shard {path} is missing"])


def _faults(path: Path, file: BinaryIO, manifest: Manifest, shard: Shard) -> Iterator[str]:
    if (size := path.stat().st_size) != shard.bytes:
        yield f"shard {path} has {size} bytes, the manifest says {shard.bytes}"
    elif (found := xxh3(path)) != shard.xxh3:
        yield f"shard {path} has XXH3 {found}, the manifest says {shard.xxh3}"
    try:
        content = OpenShard(str(path), file.fileno(), shard.samples)
    except ValueError as error:
        yield str(error)
        return
    entries, damage = content.index()
    if damage:
        yield f"shard {path} {damage}"
    if len(entries) != shard.samples:
        yield f"shard {path} holds {len(entries)} samples, the manifest says {shard.samples}"
    if len(entries) <= shard.samples:
        for index in range(len(entries)):
            try:
                decode(content.read(index), manifest.spec, scale=manifest.any_size)
            except ValueError as error:
                yield str(error)
