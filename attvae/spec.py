"""What an image is: the one description that shards, model and likelihood share."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Config(BaseModel):
    """Base of every config and manifest: unknown keys are errors, numbers are finite, instances never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSpec(Config):
    """Size and value range of the images of a data set, as its manifest states them.

    For `binary` data a stored value v is the probability v / max_value of a one: the loader draws anew at each
    visit, and the model receives {0, 1}.
    """

    height: int = Field(gt=0, description="rows of pixels")
    width: int = Field(gt=0, description="columns of pixels")
    channels: int = Field(gt=0, description="1: grey; 3: RGB")
    num_bits: int = Field(ge=1, le=16, description="bits of a stored value")
    max_value: int = Field(ge=1, description="the largest value that occurs, such as 255")
    binary: bool = Field(False, description="a stored value is the probability of a one, times max_value")

    @model_validator(mode="after")
    def _values_fit(self) -> Self:
        if self.max_value >= 2**self.num_bits:
            raise ValueError(f"max_value {self.max_value} does not fit into num_bits {self.num_bits}")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        return (self.channels, self.height, self.width)

    @property
    def white(self) -> int:
        """The largest value of a pixel that the model takes and gives, which pictures show as white."""
        return 1 if self.binary else self.max_value

    @property
    def dimensions(self) -> int:
        """Number of values in an image, the divisor of bits per dimension."""
        return self.channels * self.height * self.width
