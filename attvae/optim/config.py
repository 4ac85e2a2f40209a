"""The optimizer's settings."""

from typing import Annotated, Literal

from pydantic import Field

from attvae.spec import Config


class OptimConfig(Config):
    """Adamax. The defaults are the paper's, but for the EMA, which the authors do not use."""

    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.999, ge=0, lt=1)
    eps: float = Field(1e-3, gt=0)
    l2: Annotated[float, Field(ge=0)] | Literal["published"] = Field(
        0.0, description="coefficient λ of the penalty λ·w² on every weight; published: the authors' two coefficients"
    )
    ema_decay: float = Field(0.999, ge=0, lt=1)
