"""How a run is executed."""

from typing import Literal, Self

from pydantic import Field, model_validator

from attvae.spec import Config

Device = Literal["auto", "cuda", "cpu"]
ModelPart = Literal["encoder", "layers", "decoder"]


class EngineConfig(Config):
    """Who computes an update, and in what form: no key changes more than what docs/exact_resume.md names."""

    name: Literal["zero", "plain"] = Field("zero", description="zero: DeepSpeed; plain: torch's DDP, or no wrapper")
    device: Device = Field(
        "auto",
        description="auto: a GPU where there are any; cuda: a run without GPUs does not start; cpu: no GPU is used",
    )
    stage: Literal[0, 1, 2, 3] = Field(
        1, description="ZeRO stage: 1 partitions optimizer states, 2 gradients as well, 3 parameters as well"
    )
    micro_batch: int | None = Field(
        None, gt=0, description="images per forward pass and rank; null: the global batch divided by the ranks"
    )
    precision: Literal["fp32", "autocast", "bf16", "fp16"] = Field(
        "autocast",
        description="autocast: bf16 arithmetic, fp32 parameters; bf16, fp16: DeepSpeed's own modes, parameters in "
        "16 bits beside fp32 masters, fp16 with a dynamic loss scale. Likelihood and KL stay in fp32 in all",
    )
    offload_optimizer: bool = Field(False, description="optimizer states and their update on the CPU; stages 1 to 3")
    offload_parameters: bool = Field(False, description="parameters that are not in use on the CPU; stage 3")
    persistent_parameters: int = Field(
        100_000, ge=0, description="stage 3: parameters of up to so many elements stay whole on every rank"
    )
    recompute: tuple[ModelPart, ...] = Field(
        (), description="parts of the model whose activations are computed again in the backward pass, not kept"
    )
    depth_attention: Literal["auto", "torch", "triton", "compiled"] = Field(
        "auto",
        description="auto: on a GPU the Triton kernel, on the CPU one that the host's C compiler builds, and torch's "
        "operations where that cannot run; triton, compiled: a run where that cannot run does not start",
    )
    hang_s: float = Field(
        1800.0, gt=0, description="seconds without progress after which all ranks end and the one that hangs is named"
    )
    compile: bool = Field(False, description="torch.compile the model")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        stage = self.stage if self.name == "zero" else 0
        where = f"engine.stage={stage}" if self.name == "zero" else "engine.name=plain"
        if self.name == "plain" and self.precision in ("bf16", "fp16"):
            raise ValueError(
                f"engine.precision={self.precision} is DeepSpeed's own mode: use engine.name=zero, "
                "or engine.precision=autocast"
            )
        if self.precision in ("bf16", "fp16") and stage < 2:
            raise ValueError(
                f"engine.precision={self.precision} keeps its fp32 masters in the partitions of ZeRO stages 2 and 3, "
                f"but {where}: use one of those, or engine.precision=autocast"
            )
        if self.offload_optimizer and stage < 1:
            raise ValueError(f"engine.offload_optimizer needs ZeRO stage 1, 2 or 3, but {where}")
        if self.offload_parameters and stage < 3:
            raise ValueError(f"engine.offload_parameters needs ZeRO stage 3, but {where}")
        return self
