"""A context that is switched off: what is left is the sum of the others, as their probabilities say."""

import pytest
import torch
import torch.nn.functional as F
from test_vae import DIGITS, EVERYTHING, build, pixels
from torch import Tensor

from attvae.model.config import DepthAttentionConfig
from attvae.model.depth_attention import DecoderAttention, EncoderAttention

PLAIN = {key: {"key_dim": 4, "layer_norm": False} for key in ("encoder_attention", "decoder_attention")}


def attended(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The attended value [B, C, H, W] and the probabilities [n, B, H, W], by torch's own attention."""

    def pixelwise(slots: list[Tensor]) -> Tensor:
        return torch.stack(slots).permute(1, 3, 4, 0, 2)

    def run(slots: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query.permute(0, 2, 3, 1)[..., None, :], pixelwise(keys), slots, scale=1)

    names = torch.eye(len(keys)).expand(len(query), *query.shape[2:], -1, -1)
    return run(pixelwise(values))[..., 0, :].permute(0, 3, 1, 2), run(names)[..., 0, :].permute(3, 0, 1, 2)


def renormalised(a: Tensor, probabilities: Tensor, values: list[Tensor], slot: int) -> Tensor:
    """(a - α_m v_m) / (1 - α_m)"""
    weight = probabilities[slot].unsqueeze(1)
    return (a - weight * values[slot]) / (1 - weight)


def slots(seed: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    torch.manual_seed(seed)
    return torch.randn(2, 4, 3, 3), [torch.randn(2, 4, 3, 3) for _ in range(5)], list(torch.randn(5, 2, 6, 3, 3))


@pytest.mark.parametrize("slot", range(5))
@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_attended_value_is_the_renormalised_sum_of_the_others(slot: int, layer_norm: bool) -> None:
    query, keys, values = slots(slot)
    config = DepthAttentionConfig(key_dim=4, layer_norm=layer_norm)
    decoder, encoder, context = DecoderAttention(6, config), EncoderAttention(6, config), torch.randn(2, 6, 3, 3)
    for module in (decoder, encoder):
        torch.nn.init.constant_(module.gamma, 0.7)
        module.hidden = slot
    with torch.no_grad():
        seen = [*values[:-1], decoder.ln_value(values[-1])] if layer_norm else values
        expected = renormalised(*attended(query, keys, seen), seen, slot)
        if layer_norm:
            expected = decoder.ln_attn(expected)
        new_context, condition = decoder(context, query, keys, values)
        torch.testing.assert_close(condition, new_context + 0.7 * expected, atol=1e-5, rtol=1e-5)

        expected, own = renormalised(*attended(query, keys, values), values, slot), values[0]
        if layer_norm:
            expected, own = encoder.ln_attn(expected), encoder.ln_cond(own)
        torch.testing.assert_close(encoder(query, keys, values), own + 0.7 * expected, atol=1e-5, rtol=1e-5)


def test_a_slot_that_nobody_attends_to_is_not_missed() -> None:
    query, keys, values = slots(0)
    keys[2] = -200 * query
    module = DecoderAttention(6, DepthAttentionConfig(key_dim=4))
    torch.nn.init.constant_(module.gamma, 0.7)
    arguments = (torch.randn(2, 6, 3, 3), query, keys, values)
    with torch.no_grad():
        assert float(module.probabilities(*arguments)[2].max()) < 1e-6
        before = module(*arguments)[1]
        module.hidden = 2
        torch.testing.assert_close(module(*arguments)[1], before, atol=1e-5, rtol=0)
        module.hidden = 1
        assert float((module(*arguments)[1] - before).abs().max()) > 0.1, "another one is"


def traced(model, x: Tensor, noise: list[Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        trace = model(x, noise, trace=True).trace
    assert trace is not None
    return trace


def test_in_a_model_that_layer_alone_changes_by_the_closed_form() -> None:
    """Layers above are as before; the layer's own prior condition is new context + γ (a - α_m v_m) / (1 - α_m)."""
    model = build({"num_layers": 4, **PLAIN}, DIGITS).eval()
    layer = model.layers[3].generative
    torch.nn.init.constant_(layer.decoder_attention.gamma, 0.5)
    arguments: list[tuple] = []
    layer.decoder_attention.register_forward_pre_hook(lambda _, args: arguments.append(args))
    x, noise = pixels(DIGITS), [torch.randn(4, *shape) for shape in model.latent_shapes]
    before = traced(model, x, noise)
    for slot in range(3):
        with model.hidden_context("decoder/layer_03", slot):
            hidden = traced(model, x, noise)
        _, query, keys, values = (part for part in arguments[0])
        a, probabilities = attended(query, list(keys), list(values))
        expected = before["layer.3.new_context"] + 0.5 * renormalised(a, probabilities, list(values), slot)
        torch.testing.assert_close(hidden["layer.3.prior_condition"], expected, atol=1e-5, rtol=1e-5)
        changed = {name for name in before if not torch.equal(before[name], hidden[name])}
        assert "layer.3.prior_condition" in changed
        assert not any(name.startswith(("layer.0", "layer.1", "layer.2", "e.")) for name in changed)
    after = traced(model, x, noise)
    assert all(torch.equal(after[name], before[name]) for name in before), "and it comes back"


def test_the_probabilities_that_are_watched_stay_those_of_all_slots() -> None:
    model = build({**EVERYTHING, **PLAIN}, DIGITS).eval()
    x, noise = pixels(DIGITS), [torch.randn(4, *shape) for shape in model.latent_shapes]
    found: list[dict[str, Tensor]] = [{}, {}]
    with model.watched_depth_attention(found[0].__setitem__):
        model.encode(x, noise)
    with model.hidden_context("encoder/layer_02", 1), model.watched_depth_attention(found[1].__setitem__):
        model.encode(x, noise)
    assert torch.equal(found[0]["encoder/layer_02"], found[1]["encoder/layer_02"])


@pytest.mark.parametrize(
    ("name", "slot", "message"),
    [
        ("decoder/layer_00", 0, "no depth-wise attention 'decoder/layer_00': the model has encoder/layer_00"),
        ("decoder/layer_02", 2, "attends to the slots 0 to 1, got 2"),
        ("encoder/layer_00", -1, "attends to the slots 0 to 3, got -1"),
        ("decoder/layer_01", 0, "one slot only"),
    ],
)
def test_what_cannot_be_hidden_is_named(name: str, slot: int, message: str) -> None:
    with pytest.raises(ValueError, match=message), build({}, DIGITS).hidden_context(name, slot):
        pass
