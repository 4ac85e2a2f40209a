"""The count of FLOPs against the formula of a convolution, and against a real backward pass."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from attvae.config import load
from attvae.model.flops import training_flops
from attvae.model.vae import DeepVAE
from attvae.spec import DataSpec

CPU = torch.device("cpu")
DIGITS = DataSpec(height=8, width=8, channels=1, num_bits=8, max_value=16, binary=True)
PHOTOS = DataSpec(height=32, width=32, channels=3, num_bits=8, max_value=255)
CASES = [("configs/test/tiny.yaml", DIGITS), ("configs/photos32.yaml", PHOTOS)]


class Convolutions(TorchFunctionMode):
    """Adds up 2 * (inputs of an output value) * (output values) of every convolution."""

    flops = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.conv2d, torch.conv_transpose2d):
            weight = args[1] if len(args) > 1 else (kwargs or {})["weight"]
            of_values = result if func is torch.conv2d else args[0]
            self.flops += 2 * weight[0].numel() * of_values.numel()
        return result


@pytest.mark.parametrize(("config", "spec"), CASES)
def test_three_times_the_convolutions(config: str, spec: DataSpec) -> None:
    cfg = load(Path(config)).model
    with Convolutions() as counted:
        DeepVAE(cfg, spec)(torch.zeros(1, *spec.shape, dtype=torch.uint8))
    found = training_flops(cfg, spec, CPU)
    assert counted.flops > 100_000
    assert counted.flops <= found / 3 < 1.02 * counted.flops  # and the products that are no convolutions


@pytest.mark.parametrize(("config", "spec"), CASES)
def test_forward_and_backward_as_torch_runs_them(config: str, spec: DataSpec) -> None:
    """A little less than three times: the images need no gradient."""
    cfg = load(Path(config)).model
    with FlopCounterMode(display=False) as counted:
        DeepVAE(cfg, spec)(torch.zeros(2, *spec.shape, dtype=torch.uint8)).nelbo_nats.sum().backward()
    assert 0.95 < counted.get_total_flops() / 2 / training_flops(cfg, spec, CPU) <= 1


def test_counting_draws_no_random_numbers() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    noisy = load(Path("configs/test/tiny.yaml"), ["model.prior.noise_stddev=0.001"]).model
    training_flops(noisy, DIGITS, CPU)
    assert torch.equal(torch.get_rng_state(), before)
