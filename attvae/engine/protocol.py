"""What the training loop asks of an engine."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from attvae.engine.guard import GradientGuard
from attvae.engine.rendezvous import World

MicroLoss = Callable[[nn.Module], Tensor]
"""Given the model as the engine wraps it, the mean loss of one micro-batch. The model is called once."""

RestoredState = Callable[[str, str], Tensor]
"""(`parameters`, `buffers` or an optimizer state's name, tensor's name) -> the full tensor, from a checkpoint."""


class StepResult(NamedTuple):
    grad_norm: float
    """2-norm of the gradient of the global batch's mean loss, before clipping; not finite where it overflowed."""

    applied: bool
    """False: the update was skipped, on all ranks alike. Weights, moments, averages and buffers are as before."""


class Engine(Protocol):
    """Owns the wrapped model and its optimizer. Parameters are in the module before an engine is made.

    Every method is collective: all ranks call it, in the same order.
    """

    world: World
    guard: GradientGuard
    """Decides which updates are skipped, and counts them."""

    def train_step(self, micro_losses: Sequence[MicroLoss], lr: float) -> StepResult:
        """One update from the mean of the losses of all micro-batches on all ranks."""

    def restore(self, restored: RestoredState, updates: int, guard: GradientGuard) -> None:
        """Goes back to a checkpoint in place: parameters, buffers, optimizer states, the count of updates, the guard.

        Between two steps. What went wrong since, such as weights that are not finite, leaves no trace; only the loss
        scale of fp16 stays as it is.
        """

    @property
    def updates(self) -> int:
        """Updates applied since the start of training."""

    @property
    def optimizer_states(self) -> tuple[str, ...]:
        """Names of the optimizer's states, such as `exp_avg`, `exp_inf`, `ema`."""

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter by name, in full and in fp32."""

    def optimizer_state(self, key: str) -> Iterator[tuple[str, Tensor]]:
        """One state of the optimizer by the parameter's name, in full and in fp32."""

    def buffers(self) -> Iterator[tuple[str, Tensor]]:
        """The module's buffers, equal on all ranks."""
