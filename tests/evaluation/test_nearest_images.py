"""The nearest training images against scikit-learn's search, and the comparison against SciPy's rank test."""

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from attvae.evaluation.nearest_images import Nearest, memorisation, nearest_images, nearest_images_picture


def images(n: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def flat(x: Tensor) -> np.ndarray:
    return x.flatten(1).double().numpy()


@pytest.mark.parametrize("batch", [1, 7, 200])
def test_they_are_those_that_scikit_learn_finds(batch: int) -> None:
    x, train = images(20, 0), images(200, 1)
    found = nearest_images(x, train.split(batch))
    distances, places = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(flat(train)).kneighbors(flat(x))
    assert torch.equal(found.images, train[places[:, 0]])
    np.testing.assert_allclose(found.distances, distances[:, 0] / np.sqrt(90), rtol=1e-9)
    assert found.searched == 200


def test_mirrored_training_images_are_found_where_the_training_mirrors_them() -> None:
    x, train = images(8, 0), images(50, 1)
    train[3], train[4] = x[2].flip(2), x[5].flip(1)
    for mirrors, repeated in (([()], set()), ([(), (3,)], {2}), ([(), (3,), (2,), (2, 3)], {2, 5})):
        found = nearest_images(x, [train], mirrors)
        assert {i for i in range(8) if found.distances[i] == 0} == repeated
        for i in repeated:
            assert torch.equal(found.images[i], x[i]), "shown as it lies beside the image"
        views = torch.cat([train.flip(list(dims)) for dims in mirrors])
        expected = NearestNeighbors(n_neighbors=1).fit(flat(views)).kneighbors(flat(x))[0][:, 0] / np.sqrt(90)
        np.testing.assert_allclose(found.distances, expected, rtol=1e-9)


def test_a_copy_is_at_distance_0_even_of_large_images() -> None:
    """Where |a|² + |b|² - 2ab in float32 is not."""
    x = torch.randint(250, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert nearest_images(x, [torch.cat([255 - x, x])]).distances.tolist() == [0, 0]


def test_without_a_training_image_it_says_so() -> None:
    with pytest.raises(ValueError, match="no training image to compare with"):
        nearest_images(images(1, 0), [images(0, 0)])


def test_the_comparison_is_the_statistic_of_mann_and_whitney() -> None:
    rng = np.random.default_rng(0)
    samples, tests = rng.integers(3, 12, 40) / 4, rng.integers(5, 14, 30) / 4  # with ties
    nothing = torch.zeros(0)
    found = memorisation(
        Nearest(nothing, torch.from_numpy(samples), 100), Nearest(nothing, torch.from_numpy(tests), 100)
    )
    u = scipy.stats.mannwhitneyu(tests, samples).statistic
    assert found["closer_than_test"] == pytest.approx(u / (40 * 30))
    assert found["samples"] == pytest.approx(
        {
            "mean": samples.mean(),
            "standard_error": scipy.stats.sem(samples),
            "median": np.median(samples),
            "min": samples.min(),
            "identical": 0,
        }
    )


def test_a_model_that_repeats_its_training_images_shows() -> None:
    """Samples are noisy training images, test images are new."""
    train = images(100, 1)
    noisy = (train[:20].int() + torch.randint(-3, 4, (20, 3, 6, 5))).clamp(0, 255).to(torch.uint8)
    figures = memorisation(nearest_images(noisy, [train]), nearest_images(images(20, 2), [train]))
    assert figures["closer_than_test"] == 1.0
    figures = memorisation(nearest_images(images(300, 3), [train]), nearest_images(images(300, 2), [train]))
    assert abs(figures["closer_than_test"] - 0.5) < 0.1


def test_the_closest_stand_first_in_the_picture() -> None:
    x, train = images(6, 0), images(40, 1)
    train[0] = x[4]
    found = nearest_images(x, [train])
    picture = nearest_images_picture(x, found, x, found, 255, 3)
    first = x[4].permute(1, 2, 0).numpy().repeat(10, axis=0).repeat(10, axis=1)
    pixels = np.asarray(picture)
    places = [
        (y, x0)
        for y in range(pixels.shape[0] - 60)
        for x0 in range(pixels.shape[1] - 50)
        if (pixels[y, x0] == first[0, 0]).all() and (pixels[y : y + 60, x0 : x0 + 50] == first).all()
    ]
    left = min(x0 for _, x0 in places)
    assert left < pixels.shape[1] / 2
    assert len([y for y, x0 in places if x0 == left]) == 4, "image and neighbour, twice"
