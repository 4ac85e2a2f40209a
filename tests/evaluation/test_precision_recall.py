"""Precision and recall against the definition, scikit-learn's neighbours, and sets whose answer is known."""

from threading import Barrier, Thread

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from attvae.evaluation import precision_recall as module
from attvae.evaluation.precision_recall import NEIGHBOURS, PrecisionRecall, precision_recall


def clouds(n: int = 157, m: int = 203, d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return (
        generator.normal(100, 1, (n, d)).astype(np.float32),
        generator.normal(100.5, 0.8, (m, d)).astype(np.float32),
    )


def shares(images: np.ndarray, samples: np.ndarray) -> tuple[float, float]:
    found = precision_recall(torch.from_numpy(images), torch.from_numpy(samples))
    return found.precision.value, found.recall.value


@pytest.mark.parametrize("block", [16, 2048])
def test_against_the_definition(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)

    def covered(queries: np.ndarray, by: np.ndarray) -> float:
        a, b = queries.astype(np.float64), by.astype(np.float64)
        radii = np.sort(np.linalg.norm(b[:, None] - b[None], axis=2), axis=1)[:, 3]
        return float((np.linalg.norm(a[:, None] - b[None], axis=2) <= radii).any(axis=1).mean())

    images, samples = clouds()
    expected = covered(samples, images), covered(images, samples)
    assert shares(images, samples) == pytest.approx(expected, abs=1e-12)
    assert 0.5 < expected[0] < 0.99
    assert 0.2 < expected[1] < 0.95


def test_against_scikit_learn() -> None:
    def covered(queries: np.ndarray, by: np.ndarray) -> float:
        radii = NearestNeighbors(n_neighbors=NEIGHBOURS + 1).fit(by).kneighbors(by)[0][:, -1]
        distances, places = NearestNeighbors(n_neighbors=len(by)).fit(by).kneighbors(queries)
        return float((distances <= radii[places]).any(axis=1).mean())

    images, samples = (each.astype(np.float64) for each in clouds(500, 400, 20))
    assert shares(images, samples) == pytest.approx((covered(samples, images), covered(images, samples)), abs=1e-12)


def test_sets_whose_answer_is_known() -> None:
    images, _ = clouds(400, 1, 2)
    assert shares(images, images) == (1, 1)
    assert shares(images, images + 1000) == (0, 0)
    few = images[np.argsort(images[:, 0])[:40]]  # from one side only
    precision, recall = shares(images, few)
    assert precision == 1
    assert 0.1 <= recall < 0.3
    assert shares(few, images) == (recall, precision)


def test_images_that_are_all_the_same() -> None:
    """Their balls have no radius but cover what is the same, up to what float32 makes of it in another batch."""
    images, _ = clouds(20, 1, 3)
    images = np.repeat(images - 100, 5, axis=0)
    samples = images * (1 + np.float32(1e-7))
    assert shares(images, samples) == (1, 1)
    assert shares(images, images + 0.01) == (0, 0)


def test_standard_errors_are_binomial() -> None:
    images, samples = (torch.from_numpy(each) for each in clouds())
    found = precision_recall(images, samples)
    p, r = found.precision, found.recall
    assert p.standard_error == pytest.approx(np.sqrt(p.value * (1 - p.value) / 203))
    assert r.standard_error == pytest.approx(np.sqrt(r.value * (1 - r.value) / 157))


def test_ranks_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 32)
    images, samples = (torch.from_numpy(each) for each in clouds())
    given: list[torch.Tensor | None] = [None, None]
    barrier = Barrier(2)
    found: list[PrecisionRecall | None] = [None, None]

    def run(rank: int) -> None:
        def total(x: torch.Tensor) -> torch.Tensor:
            given[rank] = x
            barrier.wait(30)
            both = torch.stack([each for each in given if each is not None]).sum(dim=0)
            barrier.wait(30)
            return both

        found[rank] = precision_recall(images, samples, rank, 2, total)

    threads = [Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == precision_recall(images, samples)


def test_tables_of_distances_are_never_larger_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = set()
    measured = module._squared_distances

    def noting(*given: torch.Tensor) -> torch.Tensor:
        found = measured(*given)
        sizes.add(max(found.shape))
        return found

    monkeypatch.setattr(module, "_BLOCK", 32)
    monkeypatch.setattr(module, "_squared_distances", noting)
    shares(*clouds())
    assert max(sizes) == 32
