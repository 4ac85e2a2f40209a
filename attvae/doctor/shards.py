"""Looks at the data of a run, the way that the run will."""

import time

from attvae.config import RunConfig
from attvae.data.loader import open_manifest, train_batches
from attvae.data.manifest import SPLITS, Manifest
from attvae.doctor.check import Check

PATIENCE_S = 20.0
"""For remote data that stay silent; a run has more."""


def impatient(cfg: RunConfig) -> RunConfig:
    """The configuration with less patience for remote data."""
    data = cfg.data.model_copy(update={"retry_s": min(cfg.data.retry_s, PATIENCE_S)})
    return cfg.model_copy(update={"data": data})


def manifest_of(cfg: RunConfig) -> tuple[Manifest | None, Check]:
    """The manifest, if it can be read, and what is wrong with its shards, if anything is.

    Sizes of all shards are compared with the manifest, hashes as well where the data are small.
    """
    try:
        manifest = open_manifest(cfg.data)
    except (ValueError, OSError) as error:
        return None, Check("shards", "problem", str(error))
    shards = sum(len(each) for each in manifest.splits.values())
    images = sum(shard.samples for each in manifest.splits.values() for shard in each)
    found = f"{manifest.name} {manifest.version}: {images:,} images in {shards:,} shards"
    try:
        if cfg.data.spec not in (None, manifest.spec):
            raise ValueError(f"{cfg.data.path} holds {manifest.spec!r}, the configuration is for {cfg.data.spec!r}")
        for split in SPLITS:
            if cfg.data.on_damage == "raise":
                manifest.check_shards(split)
            elif damage := manifest.damage(split):
                return manifest, Check("shards", "warning", f"{damage}: to be skipped, as data.on_damage=skip says")
    except (ValueError, OSError) as error:
        return manifest, Check("shards", "problem", str(error))
    return manifest, Check("shards", "ok", found)


def first_batch(cfg: RunConfig, manifest: Manifest, micro_batch: int, rank: int, ranks: int) -> Check:
    """This rank's first batch, through the loader and its workers.

    Raises:
        ValueError, OSError: it cannot be read.
    """
    started = time.monotonic()
    # The workers end with the iterator.
    batch = next(train_batches(manifest, cfg.data, cfg.seed, 0, micro_batch, rank, ranks))
    found = f"{len(batch.ids)} images in {time.monotonic() - started:.2f} s, {cfg.data.workers} workers"
    if batch.damaged:
        return Check("first batch", "warning", f"{found}; {batch.damaged[0]}")
    return Check("first batch", "ok", found)
