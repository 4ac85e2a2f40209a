from typing import Any

import pytest
import torch
from torch import Tensor

from attvae.model.config import ModelConfig
from attvae.model.vae import DeepVAE
from attvae.spec import DataSpec

DIGITS = DataSpec(height=8, width=8, channels=1, num_bits=5, max_value=16, binary=True)
CHARACTERS = DataSpec(height=12, width=12, channels=1, num_bits=1, max_value=1, binary=True)
GREY = DataSpec(height=8, width=8, channels=1, num_bits=5, max_value=16)
COLOUR = DataSpec(height=16, width=16, channels=3, num_bits=8, max_value=255)

SMALL: dict[str, Any] = {
    "num_layers": 3,
    "latent_channels": 2,
    "encoder_filters": 4,
    "decoder_filters": 4,
    "preprocessing": {"scales": [-2]},
    "encoder": {"scales": [0]},
    "decoder": {"scales": [0]},
    "postprocessing": {"scales": [2]},
    "encoder_attention": {"key_dim": 4},
    "decoder_attention": {"key_dim": 4},
    "likelihood": {"kind": "bernoulli"},
}
NO_ATTENTION = {"encoder_attention": None, "decoder_attention": None}
P0 = {"preprocessing": {"scales": [0]}, "postprocessing": {"scales": [0]}}
P2 = {"preprocessing": {"scales": [-2, -2]}, "postprocessing": {"scales": [2, 2]}}
NON_LOCAL = {"key_dim": 2}
EVERYTHING = {
    "preprocessing": {"scales": [0, -2], "non_local": NON_LOCAL, "squeeze_excite": True},
    "encoder": {"scales": [0, 0], "non_local": {"key_dim": 2, "subsample": True}},
    "decoder": {"scales": [0, 0], "non_local": {"key_dim": 2, "layer_norm": True, "learned_scale": False}},
    "postprocessing": {"scales": [2, 0], "non_local": NON_LOCAL, "num_nodes": 3},
    "encoder_merge": NON_LOCAL,
    "decoder_merge": NON_LOCAL,
    "prior": {"low": -1.0, "high": 5.0, "noise_stddev": 0.001},
    "posterior": {"noise_stddev": 0.001},
}
OMNIGLOT_KIND = {
    "preprocessing": {"scales": [0, 0, -2]},
    "encoder": {"scales": [0, 0]},
    "decoder": {"scales": [0, 0]},
    "postprocessing": {"scales": [2, 0, 0], "non_local": NON_LOCAL},
    "encoder_merge": NON_LOCAL,
    "decoder_merge": NON_LOCAL,
    "encoder_attention": {"key_dim": 4, "layer_norm": False},
    "soft_clamp": "published",
    "pad": 2,
}
MIXTURE = {"likelihood": {"kind": "logistic_mixture", "num_mixtures": 2}}
CASES = {
    "small": ({}, DIGITS),
    "no attention": (NO_ATTENTION, DIGITS),
    "encoder attention only": ({"decoder_attention": None}, DIGITS),
    "decoder attention only": ({"encoder_attention": None}, DIGITS),
    "without layer norm": (
        {k: {"key_dim": 4, "layer_norm": False} for k in ("encoder_attention", "decoder_attention")},
        DIGITS,
    ),
    "P=0": (P0, DIGITS),
    "P=2": ({**P2, **MIXTURE}, COLOUR),
    "two pre-processing blocks": ({"num_proc_blocks": 2, **MIXTURE}, COLOUR),
    "one layer": ({"num_layers": 1}, DIGITS),
    "two layers": ({"num_layers": 2}, DIGITS),
    "padded": ({"pad": 2}, DIGITS),
    "group norm": ({"norm": "group"}, DIGITS),
    "no norm": ({"norm": "none"}, DIGITS),
    "batch norm of all ranks": ({"norm": "sync_batch"}, DIGITS),
    "learned attention scale": (
        {k: {"key_dim": 4, "scale": "learned"} for k in ("encoder_attention", "decoder_attention")},
        DIGITS,
    ),
    "everything": ({**EVERYTHING, **MIXTURE}, COLOUR),
    "three grids": ({"coarser_layers": [1, 1], **EVERYTHING, **MIXTURE}, COLOUR),
    "two grids, no attention": ({"coarser_layers": [2], **NO_ATTENTION}, DIGITS),
    "two grids, encoder attention only": ({"coarser_layers": [1], "decoder_attention": None}, DIGITS),
    "two grids, decoder attention only": ({"coarser_layers": [1], "encoder_attention": None}, DIGITS),
    "grey levels": (MIXTURE, GREY),
    "OMNIGLOT's kind": (OMNIGLOT_KIND, CHARACTERS),
    "OMNIGLOT's kind, encoder attention only": ({**OMNIGLOT_KIND, "decoder_attention": None}, CHARACTERS),
    "OMNIGLOT's kind, decoder attention only": ({**OMNIGLOT_KIND, "encoder_attention": None}, CHARACTERS),
}


def build(change: dict[str, Any], spec: DataSpec) -> DeepVAE:
    torch.manual_seed(0)
    return DeepVAE(ModelConfig.model_validate({**SMALL, **change}), spec)


def pixels(spec: DataSpec, batch: int = 4) -> Tensor:
    top = 1 if spec.binary else spec.max_value
    return torch.randint(0, top + 1, (batch, *spec.shape), dtype=torch.uint8)


@pytest.mark.parametrize("case", CASES)
def test_every_configuration_trains_and_samples(case: str) -> None:
    change, spec = CASES[case]
    model = build(change, spec)
    x = pixels(spec)
    elbo = model(x)
    layers = model.config.num_layers
    assert elbo.nll_nats.shape == elbo.nelbo_nats.shape == (4,)
    assert elbo.kl_nats.shape == (layers, 4)
    assert (elbo.kl_nats >= 0).all()
    assert elbo.trace is None
    torch.testing.assert_close(elbo.nelbo_nats, elbo.nll_nats + elbo.kl_nats.sum(dim=0))

    elbo.nelbo_nats.mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.dim() >= 1, name
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name

    for images in (model.sample(2), model.reconstruct(x[:2])):
        assert images.shape == (2, *spec.shape)
        assert images.dtype == torch.uint8
        assert images.max() <= (1 if spec.binary else spec.max_value)
    assert len(model.latent_shapes) == layers
    assert [z.shape for z in model.encode(x)] == [(4, *shape) for shape in model.latent_shapes]
    assert model.log_likelihood(x, 3).isfinite().all()


ALL_ATTENTIONS = {
    "encoder": {"scales": [0], "non_local": NON_LOCAL},
    "decoder": {"scales": [0], "non_local": NON_LOCAL},
    "preprocessing": {"scales": [-2], "non_local": NON_LOCAL},
    "postprocessing": {"scales": [2], "non_local": NON_LOCAL},
    "encoder_merge": NON_LOCAL,
    "decoder_merge": NON_LOCAL,
}


def test_all_attentions_off_keeps_the_names_of_the_common_parts() -> None:
    attentive, plain = build(ALL_ATTENTIONS, DIGITS).state_dict(), build(NO_ATTENTION, DIGITS).state_dict()
    assert plain.keys() < attentive.keys()
    for name in attentive.keys() - plain.keys():
        assert any(part in name for part in ("_attention.", ".non_local.", ".ctx_layer_norm.", ".conv_a."))


def test_closed_gates_give_the_baseline_whose_weights_it_shares() -> None:
    """Without keys the widths differ, so attention here is spatial: the baseline with its weights is the same model."""
    attentive = build({**ALL_ATTENTIONS, **NO_ATTENTION}, DIGITS).eval()
    plain = build(NO_ATTENTION, DIGITS).eval()
    plain.load_state_dict({name: attentive.state_dict()[name] for name in plain.state_dict()})
    x = pixels(DIGITS)
    noise = [torch.randn(4, *shape) for shape in attentive.latent_shapes]
    torch.testing.assert_close(plain(x, noise).nelbo_nats, attentive(x, noise).nelbo_nats)


def test_noise_decides_the_latents() -> None:
    model = build({}, DIGITS).eval()
    x = pixels(DIGITS)
    noise = [torch.randn(4, *shape) for shape in model.latent_shapes]
    torch.testing.assert_close(model(x, noise).nelbo_nats, model(x, noise).nelbo_nats, rtol=0, atol=0)
    assert not torch.equal(model(x, noise).nelbo_nats, model(x).nelbo_nats)
    torch.testing.assert_close(model(x, noise).nelbo_nats[2:], model(x[2:], [eps[2:] for eps in noise]).nelbo_nats)


@pytest.mark.parametrize("case", ["small", "everything"])
def test_decoding_inferred_latents_reproduces_the_reconstruction(case: str) -> None:
    change, spec = CASES[case]
    model = build(change, spec)
    x = pixels(spec)
    noise = [torch.randn(4, *shape) for shape in model.latent_shapes]
    latents = model.encode(x, noise)
    trace = model.eval()(x, noise, trace=True).trace
    for i, z in enumerate(latents):
        assert torch.equal(z, trace[f"layer.{i}.z"])
    torch.manual_seed(1)
    decoded = model.decode(latents)
    torch.manual_seed(1)
    assert torch.equal(decoded, model.reconstruct(x, noise))


def test_importance_weighted_bound_with_one_sample_is_close_to_the_elbo() -> None:
    """Both estimate the bound: over many draws their means agree within 4 standard errors."""
    model = build({}, DIGITS).eval()
    x = pixels(DIGITS, 1).expand(2000, -1, -1, -1)
    with torch.no_grad():
        nelbo = model(x).nelbo_nats
    log_weight = model.log_likelihood(x, 1)
    standard_error = ((nelbo.var() + log_weight.var()) / 2000).sqrt()
    assert (nelbo.mean() + log_weight.mean()).abs() < 4 * standard_error
    assert model.log_likelihood(x[:200], 50).mean() > log_weight.mean()


def test_temperature_scales_the_priors() -> None:
    model = build({}, DIGITS).eval()
    noise = [torch.randn(8, *shape) for shape in model.latent_shapes]
    cold = [torch.zeros_like(eps) for eps in noise]
    torch.manual_seed(0)
    at_zero = model.sample(8, temperature=0.0, noise=noise)
    torch.manual_seed(0)
    assert torch.equal(at_zero, model.sample(8, noise=cold))


def test_gates_and_muting() -> None:
    model = build({}, DIGITS).eval()
    gates = model.attention_gates()
    assert sorted(gates) == [
        "decoder/layer_01", "decoder/layer_02", "encoder/layer_00", "encoder/layer_01", "encoder/layer_02",
    ]  # fmt: skip
    x = pixels(DIGITS)
    noise = [torch.randn(4, *shape) for shape in model.latent_shapes]
    closed = model(x, noise).nelbo_nats
    for name, parameter in model.named_parameters():
        if name.endswith("attention.gamma"):
            torch.nn.init.constant_(parameter, 0.7)
    assert all(gate.item() == pytest.approx(0.7) for gate in model.attention_gates().values())
    opened = model(x, noise).nelbo_nats
    assert not torch.allclose(opened, closed)
    with model.without_depth_attention():
        torch.testing.assert_close(model(x, noise).nelbo_nats, closed)
    torch.testing.assert_close(model(x, noise).nelbo_nats, opened)


def test_log_scale_noise_in_training_only() -> None:
    model = build({"prior": {"noise_stddev": 0.5}, "posterior": {"noise_stddev": 0.5}, "norm": "none"}, DIGITS)
    x = pixels(DIGITS)
    noise = [torch.randn(4, *shape) for shape in model.latent_shapes]
    assert not torch.equal(model(x, noise).kl_nats, model(x, noise).kl_nats)
    model.eval()
    assert torch.equal(model(x, noise).kl_nats, model(x, noise).kl_nats)


def test_sampling_leaves_mode_and_statistics_alone() -> None:
    model = build({}, DIGITS)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x = pixels(DIGITS)
    model.sample(2)
    model.reconstruct(x)
    model.log_likelihood(x, 2)
    assert model.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_margin_has_no_part_in_the_likelihood() -> None:
    model = build({"pad": 2}, DIGITS).eval()
    x = pixels(DIGITS)
    elbo = model(x, trace=True)
    logits = elbo.trace["head_params"][:, :, 2:10, 2:10]
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(x.float()).sum(dim=(1, 2, 3))
    torch.testing.assert_close(elbo.nll_nats, -expected)


def test_distributions_stay_in_float32_under_autocast() -> None:
    model = build({}, DIGITS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        elbo = model(pixels(DIGITS), trace=True)
    assert elbo.trace["merged_latent"].dtype == torch.bfloat16
    for name in ("layer.1.posterior_raw_mu", "layer.1.prior_sigma", "layer.1.z", "nll", "layer.0.kl"):
        assert elbo.trace[name].dtype == torch.float32


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 1, 8, 9, dtype=torch.uint8), r"\[batch, 1, 8, 8\], got \[2, 1, 8, 9\]"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"\[batch, 1, 8, 8\], got \[2, 3, 8, 8\]"),
        (torch.zeros(2, 1, 8, 8), "dtype torch.uint8, got torch.float32"),
        (torch.full((2, 1, 8, 8), 16, dtype=torch.uint8), "pixel values 0 to 1, got 16"),
    ],
)
def test_images_of_another_kind(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build({}, DIGITS)(x)


def test_noise_of_another_shape() -> None:
    model = build({}, DIGITS)
    x = pixels(DIGITS)
    noise = [torch.randn(4, *shape) for shape in model.latent_shapes]
    with pytest.raises(ValueError, match="3 latent layers, got 2 tensors"):
        model(x, noise[:2])
    with pytest.raises(ValueError, match=r"noise\[1\]: expected shape \(4, 2, 4, 4\), got \(4, 2, 4, 5\)"):
        model(x, [noise[0], torch.randn(4, 2, 4, 5), noise[2]])
    with pytest.raises(ValueError, match="latents: the model has 3 latent layers, got 0"):
        model.decode([])
