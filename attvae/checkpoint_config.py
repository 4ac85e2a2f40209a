"""When checkpoints are written, how, and which are kept."""

from typing import Literal, Self

from pydantic import Field, model_validator

from attvae.spec import Config


class CheckpointConfig(Config):
    """Intervals are counted in samples seen."""

    every: int = Field(gt=0, description="samples between two checkpoints")
    keep_last: int = Field(2, gt=0, description="so many of the newest are kept")
    keep_every: int | None = Field(None, gt=0, description="older ones at multiples of this are kept too; null: none")
    background: bool = Field(False, description="training goes on from a copy in memory while the disk is written")
    on_failure: Literal["stop", "continue"] = Field("stop", description="when the disk is full or cannot be written")

    @model_validator(mode="after")
    def _kept_ones_exist(self) -> Self:
        if self.keep_every and self.keep_every % self.every:
            raise ValueError(f"keep_every={self.keep_every} is not a multiple of every={self.every}: make it one")
        return self
