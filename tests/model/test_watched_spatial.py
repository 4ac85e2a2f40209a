"""Where a pixel looks in the non-local blocks, against torch's attention over values that name their pixels."""

import pytest
import torch
import torch.nn.functional as F
from test_nonlocal_block import VARIANTS
from test_vae import COLOUR, DIGITS, EVERYTHING, MIXTURE, build, pixels
from torch import Tensor

from attvae.model.nonlocal_block import NonLocalBlock


@pytest.mark.parametrize("variant", VARIANTS)
def test_they_are_what_the_block_weighs_the_values_with(variant: str) -> None:
    """The attention is torch's own, called by the block itself, here with values that name the pixels."""
    torch.manual_seed(0)
    block = NonLocalBlock(8, VARIANTS[variant]).eval()
    if block.scale is not None:
        torch.nn.init.constant_(block.scale, 3.0)
    x = torch.randn(2, 8, 4, 6)
    answering = 6 if VARIANTS[variant].subsample else 24
    calls: list[Tensor] = []
    real = F.scaled_dot_product_attention

    def named(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        calls.append(real(query, key, torch.eye(answering).expand(2, -1, -1), scale=scale))
        return real(query, key, value, scale=scale)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "scaled_dot_product_attention", named)
        block(x)
        for row, column in ((0, 0), (2, 5), (3, 1)):
            found = block.probabilities(x, row, column)
            assert found.shape == ((2, 2, 3) if VARIANTS[variant].subsample else (2, 4, 6))
            torch.testing.assert_close(found.flatten(1), calls[0][:, row * 6 + column])
    assert float(calls[0].std()) > 0.001, "pixels differ"


def test_each_block_is_watched_and_nothing_changes() -> None:
    model = build({**EVERYTHING, **MIXTURE}, COLOUR).eval()
    x, noise = pixels(COLOUR), [torch.randn(4, *shape) for shape in model.latent_shapes]
    before = model(x, noise).nelbo_nats
    found: dict[str, Tensor] = {}
    with model.watched_spatial_attention((0.5, 0.99), found.__setitem__):
        assert torch.equal(model(x, noise).nelbo_nats, before)
    assert len(found) == sum(isinstance(module, NonLocalBlock) for module in model.modules())
    assert "layers.1.generative.merge_decoder" in found
    for probabilities in found.values():
        torch.testing.assert_close(probabilities.sum(dim=(1, 2)), torch.ones(len(x)))
    seen = dict(found)
    found.clear()
    model(x, noise)
    assert seen
    assert not found, "the watch has ended"


def test_the_asking_pixel_is_a_place_of_the_image_at_any_size_of_map() -> None:
    block_of = {"preprocessing": {"scales": [0], "non_local": {"key_dim": 2}}}
    model = build({**block_of, "postprocessing": {"scales": [0]}}, DIGITS).eval()
    asked: list[tuple[int, int]] = []
    [block, *_] = [module for module in model.modules() if isinstance(module, NonLocalBlock)]
    block.probabilities = lambda x, row, column: asked.append((row, column)) or x[:, 0]  # type: ignore[method-assign]
    with model.watched_spatial_attention((0.5, 0.999), lambda *_: None):
        model.encode(pixels(DIGITS))
    assert asked == [(4, 7)]


def test_a_model_without_blocks_tells_nothing() -> None:
    found: dict[str, Tensor] = {}
    with (model := build({}, DIGITS)).watched_spatial_attention((0, 0), found.__setitem__):
        model.encode(pixels(DIGITS))
    assert found == {}
