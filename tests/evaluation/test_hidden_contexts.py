"""What switching a context off costs, by hand; and figures of attention in a model as a whole."""

import pytest
import scipy.stats
import torch
from small_model import BITS, small_model

from attvae.evaluation.depth_attention import depth_attention_maps, depth_attention_of
from attvae.evaluation.depth_attention_maps import depth_attention_maps_picture
from attvae.evaluation.hidden_contexts import most_attended_hidden
from attvae.evaluation.in_chunks import InChunks

X = torch.randint(0, 2, (5, *BITS.shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
MODEL = small_model()
NOISE = [torch.randn(5, *shape) for shape in MODEL.latent_shapes]


def test_the_most_attended_context_of_each_layer_is_switched_off_in_turn() -> None:
    chunks = InChunks(MODEL, 2)
    attention = depth_attention_of(chunks, X, NOISE)
    found = most_attended_hidden(chunks, attention, X, NOISE)
    names = [("decoder", 2), ("decoder", 3), *(("encoder", layer) for layer in range(4))]
    assert [(each.path, each.layer) for each in found] == names
    with torch.no_grad():
        before = MODEL(X, NOISE).nelbo_nats
    for each in found:
        first = each.layer if each.path == "encoder" else 0
        row = attention.as_json(4)[each.path]["alpha"][each.layer]
        assert each.probability == max(row) == row[each.context]
        with torch.no_grad(), MODEL.hidden_context(f"{each.path}/layer_{each.layer:02d}", each.context - first):
            change = (MODEL(X, NOISE).nelbo_nats - before).numpy()
        assert each.nelbo_change_nats == pytest.approx(change.mean(), abs=1e-4)
        assert each.standard_error == pytest.approx(scipy.stats.sem(change), rel=1e-2, abs=1e-4)
    assert any(abs(each.nelbo_change_nats) > 1e-3 for each in found)


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_chunks_change_no_figure_and_every_row_sums_to_one(rows: int) -> None:
    whole = depth_attention_of(MODEL, X, NOISE).as_json(4)
    found = depth_attention_of(InChunks(MODEL, rows), X, NOISE).as_json(4)
    for path, columns in (("decoder", 4), ("encoder", 5)):
        alpha = torch.tensor(found[path]["alpha"])
        assert alpha.shape == (4, columns)
        torch.testing.assert_close(alpha, torch.tensor(whole[path]["alpha"]))
        first = 1 if path == "decoder" else 0  # the top layer has no context above it
        torch.testing.assert_close(alpha[first:].sum(dim=1), torch.ones(4 - first))
        triangle = torch.ones_like(alpha).tril(-1) if path == "decoder" else torch.ones_like(alpha).triu()
        assert torch.equal(alpha > 0, triangle > 0)


def test_maps_of_an_image_average_to_its_row_and_are_drawn() -> None:
    maps = depth_attention_maps(MODEL, X[:1], [eps[:1] for eps in NOISE])
    one = depth_attention_of(MODEL, X[:1], [eps[:1] for eps in NOISE])
    for each in one.encoder:
        found = maps[f"encoder/layer_{each.layer:02d}"]
        assert found.shape == (len(each.attended), 4, 4)
        torch.testing.assert_close(found.mean(dim=(1, 2)), torch.tensor(each.probabilities))
        torch.testing.assert_close(found.sum(dim=0), torch.ones(4, 4))
    two = depth_attention_maps_picture(X[0], maps, "encoder", [0, 3], 4, 4, 1)
    four = depth_attention_maps_picture(X[0], maps, "encoder", range(4), 4, 4, 1)
    assert four.height > two.height
    assert four.width == two.width >= 6 * 64


def test_a_path_without_attention_is_absent() -> None:
    model = small_model(decoder_attention=None)
    found = depth_attention_of(model, X, NOISE).as_json(4)
    assert found.keys() == {"encoder"}
