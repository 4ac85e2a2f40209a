"""AdamW by NVIDIA apex's FusedAdam. The only importer of apex, which is optional and not on PyPI."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from attvae.optim.adamw import AdamW
from attvae.optim.config import OptimConfig


def why_not() -> str | None:
    """Why NVIDIA's apex cannot be used here; None if it can be."""
    if find_spec("apex") is None:
        return "apex is not installed"
    if find_spec("apex.optimizers") is None:
        try:
            found = f"apex {version('apex')}"
        except PackageNotFoundError:
            found = "apex"
        return f"the installed {found} is not NVIDIA's but an unrelated package of that name from PyPI"
    if find_spec("amp_C") is None:
        return "NVIDIA's apex is installed without its CUDA extensions (amp_C)"
    return None


class ApexAdamW(AdamW):
    """The same update by apex's kernel.

    Raises:
        ValueError: NVIDIA's apex is not there; names what is.
    """

    FUSED = True

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], config: OptimConfig) -> None:
        if (reason := why_not()) is not None:
            raise ValueError(
                f"optim.fused=apex: {reason}: build NVIDIA's from source (APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install "
                "--no-build-isolation), or use optim.fused=auto"
            )
        super().__init__(params, config)
        self._fused: Any = None

    def _update(self, params: list[Tensor], group: dict[str, Any], t: int) -> None:
        if self._fused is None:
            from apex.optimizers import FusedAdam

            self._fused = FusedAdam(params, adam_w_mode=True)
        # Lent for one step: the groups and the states are ours, since ZeRO exchanges the parameters.
        self._fused.state = self.state
        self._fused.param_groups = [
            {
                "params": params,
                "lr": group["lr"],
                "betas": (group["beta1"], group["beta2"]),
                "eps": group["eps"],
                "weight_decay": group["weight_decay"],
                "bias_correction": True,
                "step": t - 1,
            }
        ]
        self._fused.step()
