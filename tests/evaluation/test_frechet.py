"""The Fréchet distance against closed forms, scipy's matrix root, and its own spread."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from attvae.evaluation.frechet import FeatureMoments, frechet_distance, frechet_estimate


def random_gaussian(seed: int, d: int = 12, rank: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(d, rank or d, generator=generator, dtype=torch.float64)
    return torch.randn(d, generator=generator, dtype=torch.float64), root @ root.T


def moments_of(features: np.ndarray, batch: int = 100) -> FeatureMoments:
    moments, x = FeatureMoments(features.shape[1]), torch.from_numpy(features)
    for rows in torch.arange(len(x)).split(batch):
        moments.add(x[rows], rows)
    return moments


def test_commuting_covariances() -> None:
    """With diagonal covariances it is the sum of squared differences of the means and of the standard deviations."""
    one, other = torch.tensor([1.0, 4.0, 0.0]).double(), torch.tensor([9.0, 1.0, 0.25]).double()
    mean_1, mean_2 = torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([3.0, 1.0, 1.0]).double()
    turned, _ = torch.linalg.qr(random_gaussian(3, 3)[1])
    found = frechet_distance(mean_1, turned @ one.diag() @ turned.T, mean_2, turned @ other.diag() @ turned.T)
    assert found == pytest.approx((9 + 0 + 1) + (4 + 1 + 0.25), rel=1e-8)


def test_against_scipys_matrix_root() -> None:
    (mean_1, cov_1), (mean_2, cov_2) = random_gaussian(1), random_gaussian(2)
    root = sqrtm(cov_1.numpy() @ cov_2.numpy()).real
    expected = ((mean_1 - mean_2) ** 2).sum() + np.trace(cov_1.numpy() + cov_2.numpy() - 2 * root)
    assert frechet_distance(mean_1, cov_1, mean_2, cov_2) == pytest.approx(float(expected), rel=1e-10)
    assert frechet_distance(mean_2, cov_2, mean_1, cov_1) == pytest.approx(float(expected), rel=1e-10)


def test_singular_covariances() -> None:
    mean, cov = random_gaussian(1, 40, rank=5)
    assert frechet_distance(mean, cov, mean, cov) < 1e-11 * float(cov.trace())
    assert frechet_distance(mean, cov, mean, 4 * cov) == pytest.approx(float(cov.trace()), rel=1e-10)


def test_streamed_moments_are_numpys() -> None:
    features = np.random.default_rng(0).normal(5, 2, (301, 7)).astype(np.float32)
    for batch in (7, 301):
        mean, covariance = moments_of(features, batch).gaussian()
        np.testing.assert_allclose(mean, features.astype(np.float64).mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-10)
    mean, covariance = moments_of(features).gaussian(without=3)
    others = features[np.arange(301) % 10 != 3].astype(np.float64)
    np.testing.assert_allclose(covariance, np.cov(others, rowvar=False), rtol=1e-10)


def test_ranks_add_up() -> None:
    features = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    whole, x = moments_of(features), torch.from_numpy(features)
    parts = [FeatureMoments(4), FeatureMoments(4)]
    for rank, part in enumerate(parts):
        rows = torch.arange(60)[rank::2]
        part.add(x[rows], rows)
    other = iter([parts[1].counts, parts[1].sums, *parts[1].products])
    parts[0].sum_over_ranks(lambda own: own + next(other))
    for found, expected in zip(parts[0].gaussian(), whole.gaussian(), strict=True):
        torch.testing.assert_close(found, expected)


def test_the_standard_error_is_the_spread_over_new_draws() -> None:
    generator = np.random.default_rng(0)
    estimates = [
        frechet_estimate(
            moments_of(generator.normal(size=(400, 5))), moments_of(generator.normal(0.4, 1.3, size=(400, 5)))
        )
        for _ in range(100)
    ]
    spread = np.std([each.value for each in estimates], ddof=1)
    said = np.sqrt(np.mean([each.standard_error**2 for each in estimates if each.standard_error is not None]))
    assert said == pytest.approx(spread, rel=0.15)
    assert np.mean([each.value for each in estimates]) > 5 * (0.16 + 0.09), "the bias is upwards"


def test_few_images_have_no_standard_error() -> None:
    features = np.random.default_rng(0).normal(size=(40, 3))
    assert frechet_estimate(moments_of(features), moments_of(features[:19])).standard_error is None
    assert frechet_estimate(moments_of(features), moments_of(features[:20])).standard_error is not None
