"""The manifest of a prepared data set: what the images are, and which shards hold them."""

import json
from pathlib import Path
from typing import Literal, Self

import xxhash
from pydantic import Field, PrivateAttr, ValidationError, model_validator

from attvae.spec import Config, DataSpec

FILE = "manifest.json"
FORMAT_VERSION = 1
# Up to this size of a split, reading all of it before the training costs less than a second.
HASHED_BYTES = 256 * 2**20

Format = Literal["raw", "png", "jpg"]
"""How images are stored: `.npy` (height, width, channels), PNG, or JPEG."""

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Shard(Config):
    """A webdataset tar: its file name beside the manifest, its size, and the XXH3 (64 bits, hex) of its bytes."""

    file: str = Field(pattern=r"^[^./\\][^/\\]*\.tar$")
    samples: int = Field(gt=0)
    bytes: int = Field(gt=0)
    xxh3: str = Field(pattern=r"^[0-9a-f]{16}$")


class Manifest(Config):
    """A prepared data set (design: names and formats).

    Attributes:
        version: of the rule that made the images; two versions of one name are not comparable.
        source: where the images come from, in words.
        fingerprint: of spec and shards, so that equal fingerprints mean equal data.
        format: of the stored images.
        any_size: the stored images have sizes of their own; the loader crops and scales them to the spec.
    """

    format_version: Literal[1] = 1
    name: str
    version: str
    source: str
    fingerprint: str
    spec: DataSpec
    format: Format = "raw"
    any_size: bool = False
    splits: dict[Split, tuple[Shard, ...]]
    _folder: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _fingerprint_fits(self) -> Self:
        if self.fingerprint != (found := fingerprint(self.spec, self.splits)):
            raise ValueError(f"fingerprint {self.fingerprint} does not belong to this spec and these shards ({found})")
        return self

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest in `folder`.

        Raises:
            ValueError: no such folder or manifest, broken JSON, another format version, or entries that contradict
                each other.
        """
        path = folder / FILE
        try:
            found = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            missing = "has no manifest.json" if folder.is_dir() else "does not exist"
            raise ValueError(f"data folder {folder} {missing}: {_prepare(folder)}") from None
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}): {_prepare(folder)}") from None
        version = found.get("format_version") if isinstance(found, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format_version {version!r}, this attvae reads {FORMAT_VERSION}: {_prepare(folder)}"
            )
        try:
            manifest = cls.model_validate(found)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'manifest'}: {e['msg']}" for e in error.errors())
            raise ValueError(f"{path} is damaged ({faults}): {_prepare(folder)}") from None
        manifest._folder = folder
        return manifest

    def shards(self, split: Split) -> tuple[Shard, ...]:
        """The shards of a split, in the order that numbers its samples.

        Raises:
            ValueError: the data set has no such split, or an empty one.
        """
        if shards := self.splits.get(split):
            return shards
        held = ", ".join(name for name, shards in self.splits.items() if shards)
        raise ValueError(f"data set {self.name} has no samples in split {split!r}, only in: {held}")

    def samples(self, split: Split) -> int:
        """Number of samples in a split."""
        return sum(shard.samples for shard in self.shards(split))

    def path(self, shard: Shard) -> Path:
        """Where a shard of this manifest lies."""
        return self._folder / shard.file

    def check_shards(self, split: Split) -> None:
        """Compares the files of a split with the manifest: sizes, and the hashes too where the split is small.

        Raises:
            ValueError: a shard is missing, cut short or changed.
        """
        shards = self.shards(split)
        hashed = sum(shard.bytes for shard in shards) <= HASHED_BYTES
        remedy = _prepare(self._folder, self.name)
        for shard in shards:
            path = self.path(shard)
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                raise ValueError(f"shard {path} is missing: {remedy}") from None
            if size != shard.bytes:
                raise ValueError(f"shard {path} has {size} bytes, the manifest says {shard.bytes}: {remedy}")
            if hashed and (found := xxh3(path)) != shard.xxh3:
                raise ValueError(f"shard {path} has XXH3 {found}, the manifest says {shard.xxh3}: {remedy}")


def fingerprint(spec: DataSpec, splits: dict[Split, tuple[Shard, ...]]) -> str:
    """The XXH3 (128 bits, hex) of what the data are: the spec and the shards of each split in order."""
    content = {
        "spec": spec.model_dump(),
        "splits": {name: [shard.model_dump() for shard in shards] for name, shards in splits.items()},
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def xxh3(path: Path) -> str:
    """The XXH3 (64 bits, hex) of a file, as `xxhsum -H3` prints it."""
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _prepare(folder: Path, name: str = "NAME") -> str:
    return f"prepare it with `python -m data_prep {name} --out {folder}` (--help lists the names)"
