import pytest
import torch
import torch.nn.functional as F
from golden.arrays import arrays, assert_close, nchw, weights

from attvae.model.layers import ChannelLayerNorm, WeightNormConv2d, gelu, make_norm, scaled_uniform_
from attvae.model.official import load_weights
from attvae.model.residual_cell import bilinear_double, nearest_double


def test_gain_at_construction_golden() -> None:
    unit = arrays("units", "weight_norm.init.")
    conv = WeightNormConv2d(4, 5, 3)
    expected = conv.v.detach().flatten(1).norm(dim=1).log() + 0.01
    torch.testing.assert_close(conv.log_g.detach(), expected)
    v = torch.from_numpy(unit["v"]).flatten(0, 2)
    torch.testing.assert_close(v.norm(dim=0).log() + 0.01, torch.from_numpy(unit["log_g_after_first_call"]))


def test_stride_two_golden() -> None:
    unit = arrays("units", "weight_norm.stride2_same.")
    conv = WeightNormConv2d(4, 5, 3, stride=2)
    load_weights(conv, weights(unit))
    assert_close(conv.kernel().detach(), torch.from_numpy(unit["effective_kernel"]).permute(3, 2, 0, 1))
    assert_close(conv(nchw(unit["input"])).detach(), unit["output"])


def test_a_zero_kernel_gives_zeros() -> None:
    conv = WeightNormConv2d(2, 3, 1, bias=False)
    torch.nn.init.zeros_(conv.v)
    assert (conv(torch.ones(1, 2, 4, 4)) == 0).all()


def test_initial_variance() -> None:
    v = torch.empty(200_000)
    scaled_uniform_(v, fan_in=36)
    torch.testing.assert_close(v.var(), torch.tensor(0.33 / 36), rtol=0.02, atol=0)


@pytest.mark.parametrize(("name", "function"), [("gelu", gelu), ("swish", F.silu), ("elu", F.elu)])
def test_activations_golden(name: str, function) -> None:
    unit = arrays("units", "activation.")
    assert_close(function(torch.from_numpy(unit["grid"])), unit[name])


def test_layer_norm_golden() -> None:
    unit = arrays("units", "layer_norm.")
    layer_norm = ChannelLayerNorm(6)
    layer_norm.weight.data, layer_norm.bias.data = torch.from_numpy(unit["gamma"]), torch.from_numpy(unit["beta"])
    assert_close(layer_norm(nchw(unit["input"])).detach(), unit["output"])


def test_resize_golden() -> None:
    unit = arrays("units", "resize.")
    assert_close(bilinear_double(nchw(unit["input"])), unit["bilinear_align_corners_x2"])
    assert_close(nearest_double(nchw(unit["input"])), unit["nearest_x2"])


def test_group_norm_does_not_depend_on_the_batch() -> None:
    norm = make_norm("group", 12)
    x = torch.randn(4, 12, 5, 5)
    torch.testing.assert_close(norm(x)[:2], norm(x[:2]))


def test_a_zero_kernel_learns() -> None:
    """Where the norm is clamped it is a constant: as autograd has it."""
    conv = WeightNormConv2d(2, 3, 1, bias=False)
    torch.nn.init.zeros_(conv.v)
    v = conv.v.detach().clone().requires_grad_()
    expected = v * (conv.log_g.detach().exp() / v.flatten(1).norm(dim=1).clamp_min(1e-6))[:, None, None, None]
    gradient = torch.randn_like(v)
    (found,) = torch.autograd.grad(conv.kernel(), conv.v, gradient)
    torch.testing.assert_close(found, torch.autograd.grad(expected, v, gradient)[0])
