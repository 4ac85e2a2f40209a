"""How a run is executed: nothing here changes what is learnt."""

from typing import Literal

from pydantic import Field

from attvae.spec import Config


class EngineConfig(Config):
    name: Literal["zero", "plain"] = "zero"
    stage: Literal[0, 1, 2] = Field(1, description="ZeRO stage: 1 partitions optimizer states, 2 gradients as well")
    micro_batch: int | None = Field(
        None, gt=0, description="images per forward pass and rank; null: the global batch divided by the ranks"
    )
    precision: Literal["fp32", "bf16"] = Field(
        "bf16", description="bf16: autocast with fp32 parameters; likelihood and KL stay in fp32"
    )
