"""Figures of one pixel's attention in closed form, and its picture."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import scipy.stats
import torch
from small_model import COLOUR, small_model
from torch import Tensor

from attvae.evaluation.spatial_attention import SpatialAttention, spatial_attention_of, spatial_attention_picture


class Told:
    @contextmanager
    def watched_spatial_attention(
        self, at: tuple[float, float], watch: Callable[[str, Tensor], None]
    ) -> Iterator[None]:
        assert at == (0.5, 0.25)
        watch("a", torch.full((1, 2, 4), 1 / 8))
        watch("b", torch.eye(9)[:1].view(1, 3, 3))
        yield

    def encode(self, x: Tensor, noise: list[Tensor]) -> list[Tensor]:
        return [x]

    def mean_image(self, latents: list[Tensor]) -> Tensor:
        return latents[0]


def test_alike_to_all_and_to_one() -> None:
    a, b = spatial_attention_of(Told(), torch.zeros(1), [], (0.5, 0.25))
    assert a.as_json() == pytest.approx(
        {"block": "a", "pixels": 8, "entropy_nats": math.log(8), "relative_entropy": 1, "effective_pixels": 8}
        | {"peak_over_uniform": 1}
    )
    assert (b.entropy_nats, b.peak, b.as_json()["effective_pixels"]) == (0, 9, 1)


def test_the_entropy_is_scipys() -> None:
    p = torch.softmax(torch.randn(30), 0)
    found = SpatialAttention("x", p.view(5, 6)).entropy_nats
    assert found == pytest.approx(scipy.stats.entropy(p.double().numpy()), rel=1e-5)


def test_every_block_of_a_model_once_and_fewer_in_the_picture() -> None:
    model = small_model(COLOUR, decoder={"scales": [0, 0], "non_local": {"key_dim": 2}})
    x = torch.randint(0, 256, (1, *COLOUR.shape), dtype=torch.uint8)
    blocks = spatial_attention_of(model, x, [torch.randn(1, *s) for s in model.latent_shapes], (0.5, 0.5))
    assert len(blocks) == 3 * 2 * 2
    assert len({block.block for block in blocks}) == len(blocks)
    for block in blocks:
        assert float(block.probabilities.sum()) == pytest.approx(1, abs=1e-5)
    many, few = (spatial_attention_picture(x[0], (0.5, 0.5), blocks, most, 255) for most in (12, 3))
    assert many.height > few.height
