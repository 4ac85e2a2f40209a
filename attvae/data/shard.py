"""What a manifest says of a shard, and what is said of one that is otherwise."""

from pydantic import Field

from attvae.spec import Config


class Shard(Config):
    """A webdataset tar: its file name beside the manifest, its size, and the XXH3 (64 bits, hex) of its bytes."""

    file: str = Field(pattern=r"^[^./\\][^/\\]*\.tar$")
    samples: int = Field(gt=0)
    bytes: int = Field(gt=0)
    xxh3: str = Field(pattern=r"^[0-9a-f]{16}$")


class DamagedError(ValueError):
    """A shard or a sample is missing, damaged, or not what the manifest says."""
