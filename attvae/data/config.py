"""Which data a run reads, and how."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from attvae.spec import Config, DataSpec

Flip = Literal["none", "horizontal", "both"]


class DataConfig(Config):
    """A prepared data set and how the training draws from it.

    Attributes:
        path: folder of the manifest, as `python -m data_prep` leaves it.
        workers: processes that read and decode on each rank; 0 reads in the training process. Changes no sample.
        window: samples that are shuffled together, after the shards themselves are shuffled. One epoch's order
            reads about window / (samples of a shard) shards at a time.
        spec: the images that a configuration is for. The manifest must agree; `--dry-run` then works before the data
            are there.
        flip: mirror images at random: left-right, or (`both`) left-right and up-down independently.
    """

    path: Path
    workers: int = Field(default=0, ge=0)
    window: int = Field(default=16_384, gt=0)
    flip: Flip = "none"
    spec: DataSpec | None = None
