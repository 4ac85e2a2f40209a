"""The probabilities that depth-wise attention tells, against torch's attention over values that name their slots."""

import pytest
import torch
import torch.nn.functional as F
from test_vae import DIGITS, build, pixels
from torch import Tensor

from attvae.model.depth_attention import DecoderAttention, EncoderAttention

LEARNED = {key: {"key_dim": 4, "scale": "learned"} for key in ("encoder_attention", "decoder_attention")}


def torch_probabilities(query_BKHW: Tensor, keys: list[Tensor], scale: float) -> Tensor:
    """softmax(scale * query . key) over the slots n, as [n, B, H, W]."""
    names = torch.eye(len(keys)).expand(*query_BKHW.shape[:1], *query_BKHW.shape[2:], -1, -1)
    return F.scaled_dot_product_attention(
        query_BKHW.permute(0, 2, 3, 1)[..., None, :], torch.stack(keys).permute(1, 3, 4, 0, 2), names, scale=scale
    )[..., 0, :].permute(3, 0, 1, 2)


@pytest.mark.parametrize(("change", "scale"), [({}, 1.0), (LEARNED, 0.7 / 2)])
def test_they_are_the_softmax_of_queries_and_keys(change: dict, scale: float) -> None:
    """A key width of 4 gives 1 / sqrt(4)."""
    model = build({**change, "num_layers": 4}, DIGITS)
    for name, parameter in model.named_parameters():
        if name.endswith("attention.scale"):
            torch.nn.init.constant_(parameter, 0.7)
    expected: dict[str, Tensor] = {}
    for module_name, module in model.named_modules():
        if isinstance(module, DecoderAttention | EncoderAttention):
            path = "decoder" if isinstance(module, DecoderAttention) else "encoder"
            name = f"{path}/layer_{int(module_name.split('.')[1]):02d}"

            def look(_: object, args: tuple, name: str = name) -> None:
                query, keys, _values = args[-3:]
                expected[name] = torch_probabilities(query.detach(), [key.detach() for key in keys], scale)

            module.register_forward_pre_hook(look)
    found: dict[str, Tensor] = {}
    with model.watched_depth_attention(found.__setitem__):
        model.encode(pixels(DIGITS))
    slots = {f"decoder/layer_{m:02d}": m for m in (1, 2, 3)} | {f"encoder/layer_{m:02d}": 5 - m for m in range(4)}
    assert {name: len(probabilities) for name, probabilities in found.items()} == slots
    for name, probabilities in found.items():
        torch.testing.assert_close(probabilities, expected[name])
        torch.testing.assert_close(probabilities.sum(dim=0), torch.ones(4, 4, 4))
    assert max(float(p.std(dim=0).max()) for name, p in found.items() if slots[name] > 1) > 0.01, "they differ"


def test_the_slots_are_the_contexts_above_and_the_features_below() -> None:
    """Keys and queries from the trace, which names layers and features; keys are the last 4 channels."""
    model = build({"num_layers": 4}, DIGITS).eval()
    queries: list[Tensor] = []
    model.layers[3].generative.decoder_attention.register_forward_pre_hook(lambda _, args: queries.append(args[1]))
    found: dict[str, Tensor] = {}
    with model.watched_depth_attention(found.__setitem__):
        trace = model(pixels(DIGITS), trace=True).trace
    assert trace is not None
    contexts = [trace[f"context_after_encode.{i}"][:, -4:] for i in range(3)]
    torch.testing.assert_close(found["decoder/layer_03"], torch_probabilities(queries[0], contexts, 1.0))
    for m in range(4):
        keys = [trace[f"layer.{m}.posterior_condition"][:, -4:], *(trace[f"e.{j}"][:, -4:] for j in range(m + 1, 5))]
        expected = torch_probabilities(trace[f"layer.{m}.encoder_query"], keys, 1.0)
        torch.testing.assert_close(found[f"encoder/layer_{m:02d}"], expected)


def test_watching_changes_nothing_and_ends() -> None:
    model = build({}, DIGITS).eval()
    x = pixels(DIGITS)
    noise = [torch.randn(4, *shape) for shape in model.latent_shapes]
    before = model(x, noise)
    calls: list[str] = []
    with model.watched_depth_attention(lambda name, _: calls.append(name)):
        watched = model(x, noise)
    after = model(x, noise)
    for other in (watched, after):
        assert torch.equal(other.nelbo_nats, before.nelbo_nats)
    assert sorted(calls) == sorted(model.attention_gates()), "each once, and none after the end"
