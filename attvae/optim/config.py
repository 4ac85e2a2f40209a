"""The optimizer's settings."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from attvae.spec import Config

EPS = {"adamax": 1e-3, "adamw": 1e-8}
"""The paper's, and the usual one."""


class OptimConfig(Config):
    """The defaults are the paper's, but for the EMA, which the authors do not use."""

    name: Literal["adamax", "adamw"] = Field("adamax", description="the paper's, or Adam with decoupled weight decay")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the mean of the gradients")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of their running maximum, for adamw mean square")
    eps: float = Field(EPS["adamax"], gt=0, description="by default 1e-3 for adamax, 1e-8 for adamw")
    l2: Annotated[float, Field(ge=0)] | Literal["published"] = Field(
        0.0, description="coefficient λ of adamax's penalty λ·w² on every weight; published: the authors' two"
    )
    weight_decay: float = Field(0.0, ge=0, description="adamw's, decoupled: w shrinks by lr times this")
    ema_decay: float = Field(0.999, ge=0, lt=1, description="per update, of the averaged weights; 0: no average")
    fused: Literal["auto", "compiled", "torch", "apex", "none"] = Field(
        "auto",
        description="the implementation: compiled is adamax's, torch and apex are adamw's; auto chooses and says what; "
        "the results agree to rounding",
    )

    @model_validator(mode="before")
    @classmethod
    def _eps_of_the_algorithm(cls, given: Any) -> Any:
        if isinstance(given, dict) and "eps" not in given and given.get("name") in EPS:
            return {**given, "eps": EPS[given["name"]]}
        return given

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.name == "adamax" and self.weight_decay:
            raise ValueError(f"optim.weight_decay={self.weight_decay} is adamw's: for adamax set optim.l2")
        if self.name == "adamw" and self.l2:
            raise ValueError(f"optim.l2={self.l2} is adamax's: for adamw set optim.weight_decay")
        if self.name == "adamax" and self.fused in ("torch", "apex"):
            raise ValueError(f"optim.fused={self.fused} is adamw's: for adamax use auto, compiled or none")
        if self.name == "adamw" and self.fused == "compiled":
            raise ValueError("optim.fused=compiled is adamax's: for adamw use auto, torch, apex or none")
        return self
