"""Three updates as the authors' code makes them: Adamax, KL weight, and the L2 penalty with its two coefficients."""

import numpy as np
import torch
from golden.arrays import Arrays, arrays, nchw
from torch import Tensor, nn

from attvae.build_engine import parameter_groups
from attvae.engine.config import EngineConfig
from attvae.engine.plain import PlainEngine
from attvae.engine.rendezvous import World
from attvae.model.official import canonical_names, l2_coefficients
from attvae.model.vae import DeepVAE
from attvae.objective import training_loss
from attvae.optim.adamax import Adamax
from attvae.optim.config import OptimConfig


def test_three_published_updates(cfg1: DeepVAE, cfg1_weights: Arrays, images: Tensor) -> None:
    golden = arrays("cfg1_trainsteps")
    optim = OptimConfig(l2="published", ema_decay=0.0)
    optimizer = Adamax(parameter_groups(cfg1, optim), optim)
    world = World(rank=0, size=1, device=torch.device("cpu"))
    engine = PlainEngine(cfg1.train(), optimizer, world, EngineConfig(precision="fp32"), clip_norm=None)
    coefficients, beta = l2_coefficients(cfg1), float(golden["beta"])
    reported: list[list[float]] = []

    for step in range(3):
        noise = [nchw(golden[f"step{step}.eps.{i}"]) for i in range(4)]

        def loss(forward: nn.Module, noise: list[Tensor] = noise) -> Tensor:
            elbo = forward(images, noise)
            loss = training_loss(elbo.nll_nats, elbo.kl_nats, beta)
            with torch.no_grad():
                penalty = sum(l2 * cfg1.get_parameter(name).square().sum() for name, l2 in coefficients.items())
                kl = elbo.kl_nats.sum(dim=0).mean()
                reported.append([float(v) for v in (loss + penalty, elbo.nll_nats.mean(), kl, elbo.nelbo_nats.mean())])
            return loss

        engine.train_step([loss], float(golden["lr"]))

    np.testing.assert_allclose(reported, golden["losses"], rtol=1e-4)
    after = {name.removeprefix("after3."): array for name, array in golden.items() if name.startswith("after3.")}
    assert_updates_agree(cfg1, cfg1_weights, after)


def assert_updates_agree(model: DeepVAE, start: Arrays, after: Arrays) -> None:
    """Both sides round in float32, and three steps amplify that: errors are measured against the size of the update."""
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    squares = np.zeros(2)
    for ours, canonical in canonical_names(model).items():
        expected, initial = (in_torch_layout(canonical, weights[canonical]) for weights in (after, start))
        actual = found[ours].detach().numpy().reshape(expected.shape)
        error, update = np.linalg.norm(actual - expected), np.linalg.norm(expected - initial)
        assert error <= 0.05 * update, canonical
        squares += error**2, update**2
    assert np.sqrt(squares[0] / squares[1]) <= 1e-3


def in_torch_layout(canonical: str, array: np.ndarray) -> np.ndarray:
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1) if canonical.endswith(".v") else array.transpose(0, 3, 1, 2)
    return array
