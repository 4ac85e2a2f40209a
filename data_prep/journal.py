"""What a preparation has finished so far, so that it can go on after it was killed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from attvae.data.manifest import Format, Split
from attvae.spec import Config, DataSpec
from data_prep.atomic import aside
from data_prep.dataset import Dataset
from data_prep.shard import ShardReport

FILE = "progress.jsonl"


class Preparation(Config):
    """All that decides what the shards hold. Where one of it differs, finished shards are of no use."""

    name: str
    version: str
    source: str
    identity: str
    spec: DataSpec
    format: Format
    any_size: bool
    shard_samples: int
    images: dict[Split, int]

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        return cls(
            name=dataset.name,
            version=dataset.version,
            source=dataset.source,
            identity=dataset.identity,
            spec=dataset.spec,
            format=dataset.format,
            any_size=dataset.any_size,
            shard_samples=dataset.shard_samples,
            images={split: len(images) for split, images in dataset.splits.items()},
        )


def finished(out: Path, preparation: Preparation) -> list[ShardReport]:
    """The shards in `out` that this preparation has written, as long as their files have the right size."""
    try:
        first, *lines = (out / FILE).read_text().splitlines()
        if Preparation.model_validate_json(first) != preparation:
            return []
    except (FileNotFoundError, ValueError):  # of a kill in the middle of the first line, too
        return []
    reports = []
    for line in lines:
        try:
            report = ShardReport.model_validate_json(line)
        except ValidationError:  # torn by a kill; what follows it belongs to no line
            break
        if report.shard is None or _size(out / report.shard.file) == report.shard.bytes:
            reports.append(report)
    return reports


@contextmanager
def recording(
    out: Path, preparation: Preparation, reports: list[ShardReport]
) -> Iterator[Callable[[ShardReport], None]]:
    """Starts the file anew with what is finished already; the function that is given adds a shard. The file stays."""
    with aside(out / FILE) as file:
        file.writelines(f"{entry.model_dump_json()}\n".encode() for entry in (preparation, *reports))
    with (out / FILE).open("a") as lines:

        def record(report: ShardReport) -> None:
            lines.write(f"{report.model_dump_json()}\n")
            lines.flush()

        yield record


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
