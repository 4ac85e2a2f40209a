"""Writes a data set as webdataset shards and a manifest: the same source gives the same bytes."""

import errno
import json
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from attvae.data import manifest
from attvae.data.manifest import CHECKSUM_GROUP, SPLITS, Manifest, Split, fingerprint
from attvae.data.shard import Shard
from data_prep import journal, process_pool
from data_prep.atomic import aside
from data_prep.dataset import Dataset, Rejected
from data_prep.encode import check_format
from data_prep.journal import Preparation
from data_prep.progress import Progress
from data_prep.shard import Place, ShardReport, places, write_shard
from data_prep.summary import REJECTED, print_summary
from data_prep.workplace import alone_in

INDEXED = "index"
"""The version of a manifest that was made for tars that were there before."""

_SHARD = re.compile(rf"({'|'.join(SPLITS)})-\d{{6,}}\.tar(\.tmp)?")


def prepare(dataset: Dataset, out: Path, workers: int = 1, ray: str | None = None) -> None:
    """Writes the data set into `out`, or finds it there complete and intact and says so.

    Killed at any time and called again, it goes on with the shards that are missing.

    Args:
        workers: processes that write shards.
        ray: address of a Ray cluster that writes them instead; its hosts share the source and `out`.

    Raises:
        ValueError: `out` holds another data set, or another process is writing there; the format cannot hold the
            images; a split has no image that can be read.
        OSError: `out` is full, or cannot be written.
    """
    prepare_unpacked(lambda work: dataset, out, workers, ray)


def prepare_unpacked(make: Callable[[Path], Dataset], out: Path, workers: int = 1, ray: str | None = None) -> None:
    """As `prepare`, for a source that must be unpacked first.

    Args:
        make: the data set, given a folder for temporary files.
    """
    if ray is not None and workers > 1:
        raise ValueError("--workers are processes of this machine, --ray is a cluster instead: give one of both")
    with alone_in(out) as work:
        with _room(out, lambda: "the unpacked source needs room there, too"):
            dataset = make(work)
        check_format(dataset.spec, dataset.format)
        for split, images in dataset.splits.items():
            if not len(images):
                raise ValueError(f"{dataset.source}: no images for the split {split}")
        found = _read(out)
        if found and _serves(found, dataset, out):
            (out / journal.FILE).unlink(missing_ok=True)  # of a kill at the very end
            print(f"{out} holds {found.name} complete and intact: nothing to do")
        else:
            _write(dataset, out, workers, ray, found)


def _write(dataset: Dataset, out: Path, workers: int, ray: str | None, replaced: Manifest | None) -> None:
    preparation = Preparation.of(dataset)
    reports = journal.finished(out, preparation)
    _remove_shards(out, replaced, kept={report.shard.file for report in reports if report.shard})
    # Not before: the shards that are no longer what the manifest says are gone.
    (out / manifest.FILE).unlink(missing_ok=True)
    (out / REJECTED).unlink(missing_ok=True)
    done = {report.place for report in reports}
    waiting = [place for place in places(dataset) if place not in done]
    room = _room(out, lambda: _needed(dataset, reports))
    with room, journal.recording(out, preparation, reports) as record:
        if reports:
            print(f"going on: {len(reports):,} of {len(reports) + len(waiting):,} shards are there")
        progress = Progress(sum(preparation.images.values()), sum(report.images for report in reports))
        # Workers on other hosts have working folders of their own.
        with closing(_spread(partial(write_shard, dataset, out.resolve()), waiting, workers, ray)) as written:
            for report in written:
                record(report)
                reports.append(report)
                progress.add(report.images, report.bytes)
        progress.close()
        reports.sort(key=lambda report: (list(dataset.splits).index(report.place.split), report.place.number))
        _complete(dataset, out, reports)


def _spread(
    write: Callable[[Place], ShardReport], waiting: Sequence[Place], workers: int, ray: str | None
) -> Generator[ShardReport, None, None]:
    if ray is None:
        return process_pool.spread(write, waiting, workers)
    from data_prep import ray_pool

    return ray_pool.spread(write, waiting, ray)


def _complete(dataset: Dataset, out: Path, reports: Sequence[ShardReport]) -> None:
    """What is written last, once all shards are there."""
    splits: dict[Split, tuple[Shard, ...]] = {}
    rejected: dict[Split, list[Rejected]] = {}
    for split in dataset.splits:
        splits[split] = tuple(report.shard for report in reports if report.place.split == split and report.shard)
        rejected[split] = [entry for report in reports if report.place.split == split for entry in report.rejected]
        if not splits[split]:
            first = rejected[split][0]
            raise ValueError(
                f"none of the {len(rejected[split]):,} images of {split} can be read, so there is no data set; "
                f"the first one, {first.file}: {first.reason}"
            )
    if any(rejected.values()):
        with aside(out / REJECTED) as file:
            listed = {split: [entry._asdict() for entry in entries] for split, entries in rejected.items()}
            file.write(json.dumps(listed, indent=1).encode() + b"\n")
    found = Manifest(
        name=dataset.name,
        version=dataset.version,
        source=dataset.source,
        identity=dataset.identity,
        fingerprint=fingerprint(dataset.spec, splits),
        spec=dataset.spec,
        format=dataset.format,
        any_size=dataset.any_size,
        splits=splits,
    )
    with aside(out / manifest.FILE) as file:
        file.write(found.model_dump_json(indent=1).encode() + b"\n")
    (out / journal.FILE).unlink()
    print_summary(found, rejected)
    print(f"{out} is complete, fingerprint {found.fingerprint}")


def _read(out: Path) -> Manifest | None:
    if not (out / manifest.FILE).exists():
        return None
    try:
        return Manifest.read(out)
    except ValueError as fault:
        print(f"preparing again, since {fault}")
        return None


def _serves(found: Manifest, dataset: Dataset, out: Path) -> bool:
    """Whether a prepared data set is the wanted one, complete and intact.

    Raises:
        ValueError: it is another one.
    """
    if found.name != dataset.name:
        raise ValueError(f"{out} holds the data set {found.name!r}: choose another --out for {dataset.name!r}")
    if found.version == INDEXED:
        raise ValueError(f"{out} holds tars that were there before: choose another --out for {dataset.name!r}")
    for key in ("version", "source", "identity", "spec", "format", "any_size"):
        there, wanted = getattr(found, key), getattr(dataset, key)
        if there != wanted:
            print(f"preparing again, since {key} is {there!r} there, {wanted!r} here")
            return False
    try:
        for split in found.splits:
            found.check_shards(split)
    except ValueError as fault:
        print(f"preparing again, since {fault}")
        return False
    return True


def _remove_shards(out: Path, replaced: Manifest | None, kept: set[str]) -> None:
    """Removes the shards of earlier preparations.

    Raises:
        ValueError: a tar that has the name of a shard is someone else's.
    """
    found = [path for path in out.iterdir() if _SHARD.fullmatch(path.name) and path.name not in kept]
    listed = {shard.file for shards in replaced.splits.values() for shard in shards} if replaced else set()
    for path in found:
        if path.suffix == ".tar" and path.name not in listed and not _is_marked(path):
            raise ValueError(f"{path} was not written by this command: move it away, or choose another --out")
    for path in found:
        path.unlink()


def _is_marked(path: Path) -> bool:
    """Whether a tar's first member bears our checksum; its group name is at byte 297, as POSIX has it."""
    with path.open("rb") as file:
        return file.read(512)[297:329].rstrip(b"\0") == CHECKSUM_GROUP.encode()


@contextmanager
def _room(out: Path, needed: Callable[[], str]) -> Iterator[None]:
    """Says of a full disk what is needed."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            f"{out} is full ({error.strerror}): {needed()}. Make room and run the same command again: "
            "it goes on from there"
        ) from None


def _needed(dataset: Dataset, reports: Sequence[ShardReport]) -> str:
    images = sum(len(images) for images in dataset.splits.values())
    done = sum(report.images for report in reports)
    written = sum(report.bytes for report in reports)
    # The pixels, and three headers with what fills up their blocks.
    raw = dataset.spec.dimensions * (1 if dataset.spec.num_bits <= 8 else 2) + 3 * 1024
    needed = (images - done) * (written / done if done else raw)
    return f"the {images - done:,} images that are left need about {needed / 1e9:,.3f} GB"
