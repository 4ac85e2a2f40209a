"""Which data a run reads, and how."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from attvae.spec import Config, DataSpec

Flip = Literal["none", "horizontal", "both"]
OnDamage = Literal["raise", "skip"]


class DataConfig(Config):
    """A prepared data set and how the training draws from it."""

    path: str = Field(
        description="folder of the manifest, as `python -m data_prep` leaves it; or an address of one that fsspec "
        "knows, such as s3://bucket/folder or https://host/folder"
    )
    workers: int = Field(
        default=0,
        ge=0,
        description="processes that read and decode on each rank; 0 reads in the training process. Changes no sample",
    )
    window: int = Field(
        default=16_384,
        gt=0,
        description="samples that are shuffled together, after the shards themselves are shuffled. A process holds "
        "open the shards of at most two windows: about 2 window / (samples of a shard), never more than 256",
    )
    size: int | None = Field(
        default=None, gt=0, description="crop and scale the stored images to size × size when they are read"
    )
    flip: Flip = Field(
        "none", description="mirror images at random: left-right, or (both) left-right and up-down independently"
    )
    crop_pad: int = Field(
        default=0,
        ge=0,
        description="mirror so many pixels over each edge, then cut the original size out at random; 0 for none",
    )
    on_damage: OnDamage = Field(
        "raise",
        description="what a damaged or missing sample does: end the run, or be skipped (weight 0 in every mean)",
    )
    skip_limit: float = Field(
        default=0.001, ge=0, le=1, description="the part of an epoch that may be skipped before the run ends after all"
    )
    cache: Path = Field(
        Path("~/.cache/attvae/shards"), description="folder on this node's disk for the shards of a remote path"
    )
    cache_gb: float = Field(default=100.0, gt=0, description="bound of its size, in 10^9 bytes")
    retry_s: float = Field(default=600.0, ge=0, description="seconds that a remote path may stay silent")
    dataset: str | None = Field(
        None,
        description='name and version that the manifest must have, such as "imagenet32-npz npz": figures on other data '
        "are not comparable, even where the images have the same size",
    )
    spec: DataSpec | None = Field(
        None,
        description="the images that a configuration is for. The manifest must agree; --dry-run then works before the "
        "data are there",
    )

    @field_validator("path", mode="before")
    @classmethod
    def _as_text(cls, path: object) -> object:
        return str(path) if isinstance(path, Path) else path

    @field_validator("path")
    @classmethod
    def _keeps_no_secret(cls, path: str) -> str:
        scheme, _, place = path.partition("://")
        if place and (":" in place.partition("/")[0].rpartition("@")[0] or "?" in place):
            raise ValueError(
                f"the {scheme} address holds a password or a query, and would be written into the run folder and "
                "MLflow: leave them out, and put credentials into ~/.netrc (http) or the environment (s3)"
            )
        return path
