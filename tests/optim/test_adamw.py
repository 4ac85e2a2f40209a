import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attvae.optim.adamax import Adamax
from attvae.optim.adamw import AdamW
from attvae.optim.apex_adamw import ApexAdamW, why_not
from attvae.optim.choose import choose
from attvae.optim.config import OptimConfig
from attvae.optim.ema import EmaOptimizer
from attvae.optim.torch_adamw import TorchAdamW

CPU = torch.device("cpu")
CONFIG = OptimConfig(name="adamw", beta1=0.8, beta2=0.95, eps=1e-4, weight_decay=0.3, ema_decay=0.9)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def updates(optimizer: torch.optim.Optimizer, params: list[Tensor], count: int, first: int = 0) -> None:
    for t in range(first, first + count):
        for i, p in enumerate(params):
            p.grad = normal(*p.shape, seed=100 * t + i)
        optimizer.step()


@pytest.fixture
def nvidia_apex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with the interface of NVIDIA's FusedAdam: step count in the group, moments as states."""
    package = tmp_path / "apex" / "optimizers"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (tmp_path / "amp_C.py").write_text("")
    (package / "__init__.py").write_text(
        """
import torch

class FusedAdam(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-8, adam_w_mode=True,
                 weight_decay=0.0):
        assert adam_w_mode
        super().__init__(params, dict(lr=lr, bias_correction=bias_correction, betas=betas, eps=eps,
                                      weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            assert group["bias_correction"]
            group["step"] = group.get("step", 0) + 1
            for p in group["params"]:
                state = self.state[p]
                if len(state) == 0:
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                inner = torch.optim.AdamW([p], lr=group["lr"], betas=group["betas"], eps=group["eps"],
                                          weight_decay=group["weight_decay"])
                inner.state[p] = {"step": torch.tensor(group["step"] - 1.0), "exp_avg": state["exp_avg"],
                                  "exp_avg_sq": state["exp_avg_sq"]}
                inner.step()
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in ("apex", "amp_C")]:
        del sys.modules[name]


@pytest.mark.parametrize("kind", [AdamW, TorchAdamW, ApexAdamW])
@pytest.mark.usefixtures("nvidia_apex")
def test_against_torch(kind: type[AdamW]) -> None:
    """Two groups with decays of their own; the average follows what torch's weights do."""
    ours, theirs = ([normal(3, 7), normal(11, seed=1)] for _ in range(2))
    groups: list[dict[str, Any]] = [{"params": [ours[0]]}, {"params": [ours[1]], "weight_decay": 0.0}]
    optimizer = kind(groups, CONFIG)
    optimizer.set_lr(0.02)
    reference = torch.optim.AdamW(
        [{"params": [theirs[0]]}, {"params": [theirs[1]], "weight_decay": 0.0}],
        lr=0.02,
        betas=(0.8, 0.95),
        eps=1e-4,
        weight_decay=0.3,
    )
    average = [p.clone() for p in theirs]
    for t in range(30):
        updates(optimizer, ours, 1, first=t)
        updates(reference, theirs, 1, first=t)
        d = min(0.9, (2 + t) / (11 + t))
        average = [d * a + (1 - d) * p for a, p in zip(average, theirs, strict=True)]
    assert optimizer.updates == 30
    for p, expected, a in zip(ours, theirs, average, strict=True):
        torch.testing.assert_close(p, expected, rtol=1e-5, atol=1e-6)
        for name in AdamW.MOMENTS:
            torch.testing.assert_close(optimizer.state[p][name], reference.state[expected][name], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(optimizer.state[p]["ema"], a, rtol=1e-5, atol=1e-6)
        assert set(optimizer.state[p]) == {"exp_avg", "exp_avg_sq", "ema"}


@pytest.mark.parametrize("kind", [AdamW, TorchAdamW])
def test_clipping_against_torch(kind: type[AdamW]) -> None:
    ours, theirs = normal(40), normal(40)
    optimizer = kind([ours], CONFIG)
    optimizer.set_lr(0.02)
    reference = torch.optim.AdamW([theirs], lr=0.02, betas=(0.8, 0.95), eps=1e-4, weight_decay=0.3)
    for t in range(10):
        ours.grad, theirs.grad = normal(40, seed=t + 1), normal(40, seed=t + 1)
        optimizer.clip(float(torch.nn.utils.clip_grad_norm_(theirs, 6.3)), 6.3)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [AdamW, TorchAdamW, ApexAdamW])
@pytest.mark.usefixtures("nvidia_apex")
def test_one_implementation_goes_on_from_another(kind: type[AdamW]) -> None:
    w = normal(40)
    optimizer = AdamW([w], CONFIG)
    optimizer.set_lr(0.1)
    updates(optimizer, [w], 3)
    continued = w.clone()
    second = kind([continued], CONFIG)
    second.set_lr(0.1)
    second.create_state()
    for name in second.states:
        second.state[continued][name].copy_(optimizer.state[w][name])
    second.updates = optimizer.updates
    updates(optimizer, [w], 3, first=3)
    updates(second, [continued], 3, first=3)
    torch.testing.assert_close(continued, w, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("config", "kind", "said"),
    [
        (OptimConfig(fused="none"), Adamax, "since optim.fused=none"),
        (OptimConfig(name="adamw"), TorchAdamW, "torch's fused kernel on cpu"),
        (OptimConfig(name="adamw", fused="torch"), TorchAdamW, "since optim.fused=torch"),
        (OptimConfig(name="adamw", fused="none"), AdamW, "since optim.fused=none"),
    ],
)
def test_the_choice_is_said(config: OptimConfig, kind: type[EmaOptimizer], said: str) -> None:
    optimizer, why = choose([normal(3)], config, CPU)
    assert type(optimizer) is kind
    assert said in why


def test_apex_is_refused_on_the_cpu() -> None:
    with pytest.raises(ValueError, match=r"optim.fused=apex runs on GPUs, not on cpu"):
        choose([normal(3)], OptimConfig(name="adamw", fused="apex"), CPU)


def test_an_apex_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"optim.fused=apex: apex is not installed.*use optim.fused=auto"):
        ApexAdamW([normal(3)], CONFIG)


def test_the_unrelated_apex_of_pypi_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip installs it: a package `apex` and its metadata."""
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("")
    metadata = tmp_path / "apex-0.9.10.dev0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: apex\nVersion: 0.9.10.dev0\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        reason = why_not()
    finally:
        sys.modules.pop("apex", None)
    assert reason is not None
    assert "apex 0.9.10.dev0 is not NVIDIA's but an unrelated package" in reason


@pytest.mark.usefixtures("nvidia_apex")
def test_nvidias_apex_without_its_extensions_is_named(tmp_path: Path) -> None:
    assert why_not() is None
    (tmp_path / "amp_C.py").unlink()
    import importlib

    importlib.invalidate_caches()
    assert why_not() == "NVIDIA's apex is installed without its CUDA extensions (amp_C)"


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"weight_decay": 0.1}, "for adamax set optim.l2"),
        ({"name": "adamw", "l2": 0.1}, "for adamw set optim.weight_decay"),
        ({"name": "adamw", "l2": "published"}, "for adamw set optim.weight_decay"),
        ({"fused": "torch"}, "is adamw's: for adamax use auto, compiled or none"),
        ({"name": "adamw", "fused": "compiled"}, "is adamax's: for adamw use auto, torch, apex or none"),
    ],
)
def test_what_does_not_go_together(given: dict[str, Any], remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        OptimConfig.model_validate(given)


def test_eps_is_that_of_the_algorithm() -> None:
    assert OptimConfig().eps == 1e-3
    assert OptimConfig(name="adamw").eps == 1e-8
    assert OptimConfig(name="adamw", eps=1e-5).eps == 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(why_not() is not None, reason="NVIDIA's apex is not installed")
def test_apex_itself_against_ours() -> None:
    ours, theirs = (normal(1000).cuda() for _ in range(2))
    optimizers = AdamW([ours], CONFIG), ApexAdamW([theirs], CONFIG)
    for optimizer, p in zip(optimizers, (ours, theirs), strict=True):
        optimizer.set_lr(0.02)
        for t in range(20):
            p.grad = normal(1000, seed=t).cuda()
            optimizer.step()
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(optimizers[1].state[theirs]["ema"], optimizers[0].state[ours]["ema"])
