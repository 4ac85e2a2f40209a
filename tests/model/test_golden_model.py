"""The whole model against the authors' code: every intermediate, gradient, bound and sample of a small model."""

import numpy as np
import pytest
import torch
from golden.arrays import Arrays, arrays, assert_close, facts, nchw
from torch import Tensor

from attvae.model import vae
from attvae.model.official import canonical_names, load_weights
from attvae.model.vae import DeepVAE
from attvae.model.variational_layer import Draw


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_forward(cfg1: DeepVAE, images: Tensor, noise: list[Tensor], mode: str) -> None:
    expected = arrays(f"cfg1_{mode}")
    cfg1.train(mode == "train")
    elbo = cfg1(images, noise, trace=True)

    outputs = {name for name in expected if not name.startswith(("images", "eps.", "updated."))}
    assert elbo.trace.keys() == outputs
    for name in outputs:
        assert_close(elbo.trace[name].detach(), expected[name], rtol=1e-5, atol=3e-6)
    for i in range(4):
        assert_close(elbo.kl_nats[i].detach(), expected[f"layer.{i}.kl"], rtol=5e-6, atol=0)
    assert_close(elbo.nll_nats.detach(), expected["nll"], rtol=5e-6, atol=0)
    assert_close(elbo.nelbo_nats.detach(), expected["nelbo"], rtol=5e-6, atol=0)

    names = canonical_names(cfg1)
    updated = {f"updated.{names[name]}": buffer for name, buffer in cfg1.named_buffers()}
    if mode == "train":
        assert updated.keys() == {name for name in expected if name.startswith("updated.")}
        for name, buffer in updated.items():
            assert_close(buffer, expected[name])


def named_gradients(model: DeepVAE) -> dict[str, Tensor]:
    names = canonical_names(model)
    return {names[name]: parameter.grad for name, parameter in model.named_parameters()}


def in_our_layout(name: str, gradient: np.ndarray) -> Tensor:
    if name.endswith(".v"):
        return torch.from_numpy(gradient).permute(3, 2, 0, 1)
    return nchw(gradient).view(1) if gradient.ndim == 0 else nchw(gradient)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_gradients(cfg1: DeepVAE, images: Tensor, noise: list[Tensor], mode: str) -> None:
    constants = {fact["name"] for fact in facts()["variables"] if not fact["tracked"]}  # depth attention's scale, 1
    expected = {name: array for name, array in arrays("cfg1_grads", f"{mode}.").items() if name not in constants}
    cfg1.train(mode == "train")
    loss = cfg1(images, noise).nelbo_nats.mean()
    loss.backward()
    assert_close(loss.detach(), expected.pop("loss"))
    found = named_gradients(cfg1)
    if mode == "train":
        assert found.keys() == expected.keys()
    # Some are small differences of large float32 sums: against float64 the fixtures themselves are off by up to 4e-3 of
    # a small tensor's largest gradient, and by 1e-7 of the largest of all where the true gradient is zero.
    largest = max(float(np.abs(gradient).max()) for gradient in expected.values())
    for name, gradient in expected.items():
        atol = min(1e-4 * largest, 3e-3 * float(np.abs(gradient).max()) + 2e-7 * largest)
        torch.testing.assert_close(found[name], in_our_layout(name, gradient), rtol=1e-3, atol=atol)


def test_importance_weighted_bound(cfg1: DeepVAE, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = arrays("cfg1_iwae")
    noise = [nchw(expected[f"eps.{i}"]) for i in range(4)]
    assert_close(cfg1.log_likelihood(images, 4, noise), expected["predict_workers1"], rtol=3e-6, atol=0)
    for rows in (1, 3, 6):
        monkeypatch.setattr(vae, "ROWS_AT_ONCE", rows)
        assert_close(cfg1.log_likelihood(images, 4, noise), expected["predict_workers2"], rtol=3e-6, atol=0)


def test_importance_weights(cfg1: DeepVAE, images: Tensor) -> None:
    expected = arrays("cfg1_iwae")
    one_sample_each = [
        cfg1.log_likelihood(images, 1, [nchw(expected[f"eps.{i}"])[2 * k : 2 * k + 2] for i in range(4)])
        for k in range(4)
    ]
    assert_close(torch.stack(one_sample_each), expected["log_w"], rtol=3e-6, atol=0)


@torch.no_grad()
def test_generation(cfg1: DeepVAE) -> None:
    expected = arrays("cfg1_generate")
    layers = cfg1._top_down([], [Draw(nchw(expected[f"eps.{i}"]), temperature=1.0) for i in range(4)])
    for i, layer in enumerate(layers):
        assert_close(layer.z, expected[f"z.{i}"])
    assert_close(cfg1.decoder(layers[-1].top_down.context, layers[-1].z).head, expected["head_params"])


def test_trainable_parameters(cfg1: DeepVAE) -> None:
    names = canonical_names(cfg1)
    found = {names[name]: parameter for name, parameter in cfg1.named_parameters()}
    assert found.keys() == {fact["name"] for fact in facts()["variables"] if fact["trainable"]}
    assert sum(parameter.numel() for parameter in found.values()) == facts()["count_trainable_variables"]


def test_weights_that_do_not_fit(cfg1: DeepVAE, cfg1_weights: Arrays) -> None:
    with pytest.raises(ValueError, match=r"no weights named layers\.0\.constant"):
        load_weights(cfg1, {name: array for name, array in cfg1_weights.items() if name != "layers.0.constant"})
    with pytest.raises(ValueError, match=r"data_head\.conv\.0\.bias: shape \(7,\) does not fit \(50,\)"):
        load_weights(cfg1, {**cfg1_weights, "data_head.conv.0.bias": np.zeros(7, np.float32)})
