"""Interpolation against SciPy's great circles, and in a model at its ends."""

import numpy as np
import pytest
import torch
from scipy.spatial import geometric_slerp
from small_model import BITS, small_model

from attvae.evaluation.in_chunks import InChunks
from attvae.evaluation.interpolation import interpolated, interpolation_picture, spherical


@pytest.mark.parametrize("t", [0, 0.2, 0.5, 1])
def test_on_the_sphere_it_is_scipys(t: float) -> None:
    a, b = torch.randn(2, 3, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    unit_a, unit_b = (x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for x in (a, b))
    rows = zip(unit_a.flatten(1).numpy(), unit_b.flatten(1).numpy(), strict=True)
    expected = [geometric_slerp(p, q, t) for p, q in rows]
    found = spherical(unit_a, unit_b, t)
    np.testing.assert_allclose(found.flatten(1), np.stack(expected), atol=1e-12)
    length = (1 - t) * a.flatten(1).norm(dim=1) + t * b.flatten(1).norm(dim=1)
    torch.testing.assert_close(spherical(a, b, t), found * length.view(-1, 1, 1, 1))


def test_parallel_rows_are_mixed_in_a_straight_line() -> None:
    a = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(spherical(a, 3 * a, 0.5), 2 * a)
    assert torch.equal(spherical(0 * a, 0 * a, 0.5), 0 * a)


def test_both_ends_are_the_reconstructions() -> None:
    model = small_model()
    a, b = torch.randint(0, 2, (2, 3, *BITS.shape), dtype=torch.uint8)
    chunks = InChunks(model, 2)
    zeros = [torch.zeros(3, *shape) for shape in model.latent_shapes]
    latents_a, latents_b = chunks.encode(a, zeros), chunks.encode(b, zeros)
    places = (0.0, 0.5, 1.0)
    between = interpolated(chunks, latents_a, latents_b, places)
    torch.testing.assert_close(between[0], model.mean_image(latents_a), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(between[2], model.mean_image(latents_b), atol=1e-4, rtol=1e-3)
    assert float((between[1] - between[0]).abs().max()) > 1e-3
    picture = interpolation_picture(a, b, between, places, 1)
    assert picture.width > 5 * 64
    assert picture.height > 3 * 64
