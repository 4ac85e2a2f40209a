"""The manifest of a prepared data set: what the images are, and which shards hold them."""

import json
from pathlib import Path
from typing import Literal, Self

import xxhash
from pydantic import PrivateAttr, ValidationError, model_validator

from attvae.data.shard import Shard
from attvae.data.source import LocalFolder, Source
from attvae.spec import Config, DataSpec

FILE = "manifest.json"
FORMAT_VERSION = 1
# Up to this size of a split, reading all of it before the training costs less than a second.
HASHED_BYTES = 256 * 2**20
# A tar member whose group has this name bears the XXH3 (64 bits, hex) of its content as the name of its owner.
CHECKSUM_GROUP = "xxh3"

Format = Literal["raw", "png", "jpg"]
"""How images are stored: `.npy` (height, width, channels), PNG, or JPEG."""

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class Manifest(Config):
    """A prepared data set (design: names and formats).

    Attributes:
        version: of the rule that made the images; two versions of one name are not comparable.
        source: where the images come from, in words.
        identity: of the source's files, as the preparation met them; None for tars that were there before.
        fingerprint: of spec and shards, so that equal fingerprints mean equal data.
        format: of the stored images.
        any_size: the stored images have sizes of their own; the loader crops and scales them to the spec.
    """

    format_version: Literal[1] = 1
    name: str
    version: str
    source: str
    identity: str | None = None
    fingerprint: str
    spec: DataSpec
    format: Format = "raw"
    any_size: bool = False
    splits: dict[Split, tuple[Shard, ...]]
    _storage: Source = PrivateAttr()

    @model_validator(mode="after")
    def _fingerprint_fits(self) -> Self:
        if self.fingerprint != (found := fingerprint(self.spec, self.splits)):
            raise ValueError(f"fingerprint {self.fingerprint} does not belong to this spec and these shards ({found})")
        return self

    @classmethod
    def read(cls, place: Path | Source) -> Self:
        """The manifest in a folder of this machine, or in another source of shards.

        Raises:
            ValueError: no such folder or manifest, broken JSON, another format version, or entries that contradict
                each other.
        """
        storage = LocalFolder(place) if isinstance(place, Path) else place
        path, remedy = f"{storage.address}/{FILE}", _prepare(storage.address)
        try:
            content = storage.read(FILE)
        except (FileNotFoundError, NotADirectoryError):
            near = isinstance(storage, LocalFolder)
            missing = "does not exist" if near and not Path(storage.address).is_dir() else "has no manifest.json"
            raise ValueError(f"data folder {storage.address} {missing}: {remedy}") from None
        try:
            found = json.loads(content)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}): {remedy}") from None
        version = found.get("format_version") if isinstance(found, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(f"{path} has format_version {version!r}, this attvae reads {FORMAT_VERSION}: {remedy}")
        try:
            manifest = cls.model_validate(found)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'manifest'}: {e['msg']}" for e in error.errors())
            raise ValueError(f"{path} is damaged ({faults}): {remedy}") from None
        manifest._storage = storage
        return manifest

    @property
    def storage(self) -> Source:
        """Where the shards lie."""
        return self._storage

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

    def address(self, shard: Shard) -> str:
        """Where a shard lies, for messages."""
        return f"{self._storage.address}/{shard.file}"

    def damage(self, split: Split) -> str | None:
        """What is wrong with the files of a split: one that is missing, has another size, or another hash.

        Hashes are compared where the split is small and near.
        """
        shards = self.shards(split)
        sizes = self._storage.sizes([shard.file for shard in shards])
        hashed = isinstance(self._storage, LocalFolder) and sum(shard.bytes for shard in shards) <= HASHED_BYTES
        for shard in shards:
            name, size = self.address(shard), sizes.get(shard.file)
            if size is None:
                return f"shard {name} is missing"
            if size != shard.bytes:
                return f"shard {name} has {size} bytes, the manifest says {shard.bytes}"
            if hashed and (found := xxh3(self._storage.open(shard))) != shard.xxh3:
                return f"shard {name} has XXH3 {found}, the manifest says {shard.xxh3}"
        return None

    def check_shards(self, split: Split) -> None:
        """
        Raises:
            ValueError: `damage` finds something.
        """
        if damage := self.damage(split):
            raise ValueError(f"{damage}: {_prepare(self._storage.address, self.name)}")


def fingerprint(spec: DataSpec, splits: dict[Split, tuple[Shard, ...]]) -> str:
    """The XXH3 (128 bits, hex) of what the data are: the spec and the shards of each split in order."""
    content = {
        "spec": spec.model_dump(),
        "splits": {name: [shard.model_dump() for shard in shards] for name, shards in splits.items()},
    }
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def xxh3(path: Path | int) -> str:
    """The XXH3 (64 bits, hex) of a file (or of a file descriptor, which it closes), as `xxhsum -H3` prints it."""
    digest = xxhash.xxh3_64()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _prepare(folder: str, name: str = "NAME") -> str:
    return f"prepare it with `python -m data_prep {name} --out {folder}` (--help lists the names)"
