import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from attvae.data.config import DataConfig
from attvae.data.loader import Batch, eval_batches, train_batches
from attvae.data.manifest import Manifest

Prepare = Callable[..., Manifest]


def join(batches: list[Batch]) -> Batch:
    return Batch(*(torch.cat(column) for column in zip(*batches, strict=True)))


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def stream(
    manifest: Manifest, config: DataConfig, samples: int, start: int = 0, seed: int = 0, ranks: int = 1, batch: int = 12
) -> Batch:
    """The global stream, put together from what each rank receives."""
    rounds = samples // batch
    dealt = [
        list(islice(train_batches(manifest, config, seed, start, batch // ranks, rank, ranks), rounds))
        for rank in range(ranks)
    ]
    return join([dealt[rank][k] for k in range(rounds) for rank in range(ranks)])


def whole(manifest: Manifest, config: DataConfig, draw: int = 0, ranks: int = 1, batch: int = 8) -> list[Batch]:
    return [b for rank in range(ranks) for b in eval_batches(manifest, config, "test", 3, draw, batch, rank, ranks)]


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig(path=tmp_path / "images", window=8, flip="both")


def test_batches_are_what_the_model_expects(prepare_images: Prepare, images: np.ndarray, config: DataConfig) -> None:
    batch = next(train_batches(prepare_images(images), config, 0, 46, 10, 0, 1))
    assert batch.x.shape == (10, 3, 4, 6)
    assert batch.x.dtype == torch.uint8
    assert batch.x.is_contiguous()
    assert batch.ids.dtype == batch.positions.dtype == torch.int64
    assert batch.positions.tolist() == list(range(46, 56))


def test_an_epoch_holds_each_image_once(prepare_images: Prepare, images: np.ndarray, config: DataConfig) -> None:
    config = config.model_copy(update={"flip": "none"})
    seen = stream(prepare_images(images), config, samples=46, batch=23)
    for epoch in (slice(0, 23), slice(23, 46)):
        assert sorted(seen.ids[epoch].tolist()) == list(range(23))
    assert seen.ids[:23].tolist() != seen.ids[23:].tolist()
    assert np.array_equal(seen.x.numpy(), images[seen.ids.numpy()].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_stream_is_the_same_for_any_ranks_and_workers(
    prepare_images: Prepare, images: np.ndarray, config: DataConfig, ranks: int, workers: int
) -> None:
    """With flips and binarisation on, over more than two epochs."""
    manifest = prepare_images(images, binary=True)
    alone = stream(manifest, config, samples=60)
    assert alone.positions.tolist() == list(range(60))
    spread = stream(manifest, config.model_copy(update={"workers": workers}), samples=60, ranks=ranks)
    assert equal(spread, alone)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(start=st.integers(0, 100), batch=st.integers(1, 9), seed=st.integers(0, 2**30))
def test_starting_anywhere_equals_no_interruption(digits: Path, start: int, batch: int, seed: int) -> None:
    manifest = Manifest.read(digits)
    config = DataConfig(path=digits, window=100, flip="horizontal")
    through = stream(manifest, config, samples=start + 2 * batch, seed=seed, batch=1)
    resumed = stream(manifest, config, samples=2 * batch, start=start, seed=seed, batch=batch)
    assert equal(resumed, Batch(*(column[start:] for column in through)))


def test_seeds_differ_and_one_seed_repeats(prepare_images: Prepare, images: np.ndarray, config: DataConfig) -> None:
    manifest = prepare_images(images, binary=True)
    first, again, other = (stream(manifest, config, samples=60, seed=seed) for seed in (0, 0, 1))
    assert equal(first, again)
    assert not torch.equal(first.ids, other.ids)
    by_id = [batch.x[batch.ids.sort(stable=True).indices[:1]] for batch in (first, other)]
    assert not torch.equal(*by_id)


def test_flips_are_drawn_anew_in_each_epoch(prepare_images: Prepare, images: np.ndarray, config: DataConfig) -> None:
    """One image in 200 epochs: each of its four mirror images about 50 times."""
    seen = stream(prepare_images(images[:1]), config, samples=200, batch=1).x.numpy()
    image = images[0].transpose(2, 0, 1)
    counts = [(seen == np.flip(image, axes)).all((1, 2, 3)).sum() for axes in ((), (1,), (2,), (1, 2))]
    assert sum(counts) == 200
    assert all(abs(count - 50) < 4 * np.sqrt(200 * 0.25 * 0.75) for count in counts)


def test_binary_data_are_drawn_anew_at_each_visit(prepare_images: Prepare, config: DataConfig) -> None:
    """17 images, one for each grey level, in 200 epochs: ones as often as value / 16."""
    levels = np.broadcast_to(np.arange(17, dtype=np.uint8)[:, None, None, None], (17, 8, 8, 1))
    manifest = prepare_images(levels, max_value=16, binary=True)
    seen = stream(manifest, config, samples=17 * 200, batch=17)
    for value in range(17):
        ones = seen.x[seen.ids == value].double()
        p = value / 16
        assert ones.shape == (200, 1, 8, 8)
        assert abs(ones.mean().item() - p) <= 4 * np.sqrt(p * (1 - p) / ones.numel())
        # Visits are independent: a pixel's count over 200 visits spreads as the binomial does.
        spread = ones.sum(0).var().item() / 200
        assert spread == pytest.approx(p * (1 - p), rel=0.75)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 3])
def test_evaluation_meets_each_image_once_unchanged(
    prepare_images: Prepare, images: np.ndarray, config: DataConfig, ranks: int, workers: int
) -> None:
    batches = whole(prepare_images(images), config.model_copy(update={"workers": workers}), ranks=ranks)
    found = join(batches)
    assert sorted(found.ids.tolist()) == list(range(23))
    assert torch.equal(found.positions, found.ids)
    assert np.array_equal(found.x.numpy(), images[found.ids.numpy()].transpose(0, 3, 1, 2))
    if ranks == 1:
        assert found.ids.tolist() == list(range(23))
        assert [len(batch.ids) for batch in batches] == [8, 8, 7]


def test_more_ranks_and_workers_than_images(prepare_images: Prepare, images: np.ndarray, config: DataConfig) -> None:
    batches = whole(prepare_images(images[:2]), config.model_copy(update={"workers": 2}), ranks=3)
    assert [batch.ids.tolist() for batch in batches] == [[0], [1]]


def test_a_draw_of_evaluation_depends_on_the_image_alone(
    prepare_images: Prepare, images: np.ndarray, config: DataConfig
) -> None:
    manifest = prepare_images(images, binary=True)
    reference = join(whole(manifest, config))
    assert equal(reference, join(whole(manifest, config, batch=5)))
    spread = join(whole(manifest, config, ranks=2))
    assert torch.equal(spread.x[spread.ids.argsort()], reference.x)
    draws = torch.stack([join(whole(manifest, config, draw=draw)).x for draw in range(20)]).double()
    p = torch.from_numpy(images.transpose(0, 3, 1, 2) / 255)
    # The mean over draws and pixels against its expectation, in standard deviations.
    deviation = (draws.mean(0) - p).sum() / (p * (1 - p) / 20).sum().sqrt()
    assert abs(deviation.item()) < 4
    assert len({draw.numpy().tobytes() for draw in draws}) == 20


def test_digits_are_scikit_learns(digits: Path) -> None:
    """What is certain at each draw: ink where the value is 16, none where it is 0."""
    manifest = Manifest.read(digits)
    originals = load_digits().images[1500:]
    x = join(whole(manifest, DataConfig(path=digits), batch=100)).x[:, 0].numpy()
    assert x.shape == (297, 8, 8)
    assert (x[originals == 16] == 1).all()
    assert (x[originals == 0] == 0).all()
    assert np.corrcoef(x.ravel(), originals.ravel())[0, 1] > 0.8


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_keep_their_message(
    prepare_images: Prepare, images: np.ndarray, config: DataConfig, workers: int
) -> None:
    manifest = prepare_images(images)
    config = config.model_copy(update={"workers": workers})
    damaged = manifest.path(manifest.shards("train")[2])
    os.truncate(damaged, 3000)
    with pytest.raises(ValueError, match=r"^shard \S*/train-000002\.tar (is damaged|holds 1 samples)"):
        stream(manifest, config, samples=60)
    damaged.unlink()
    with pytest.raises(ValueError, match=r"^shard \S*/train-000002\.tar is missing: prepare the data again$"):
        stream(manifest, config, samples=60)


@pytest.mark.slow  # CPU time: on a machine in use, neighbours change it
def test_digits_load_fast(digits: Path) -> None:
    manifest = Manifest.read(digits)
    batches = train_batches(manifest, DataConfig(path=digits), 0, 0, 100, 0, 1)
    next(batches)
    start = time.process_time()
    list(islice(batches, 50))
    assert 5000 / (time.process_time() - start) > 10_000


TRAINER = """
import multiprocessing, os, signal, sys, time
from pathlib import Path
from attvae.data.config import DataConfig
from attvae.data.loader import train_batches
from attvae.data.manifest import Manifest

folder = Path(sys.argv[1])
batches = train_batches(Manifest.read(folder), DataConfig(path=folder, workers=2), 0, 0, 10, 0, 1)
next(batches)
workers = [child.pid for child in multiprocessing.active_children()]
for worker in workers:
    os.kill(worker, signal.SIGINT)
for _ in range(20):
    next(batches)
print(*workers, flush=True)
time.sleep(60)
"""


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_workers_outlive_an_interrupt_but_not_their_trainer(digits: Path) -> None:
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, digits], stdout=subprocess.PIPE, text=True)
    try:
        assert trainer.stdout is not None
        workers = [int(word) for word in trainer.stdout.readline().split()]
        assert len(workers) == 2
        assert all(alive(worker) for worker in workers)
    finally:
        trainer.send_signal(signal.SIGKILL)
        trainer.communicate()
    deadline = time.monotonic() + 3  # before torch's own watch would end them
    while any(alive(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(worker) for worker in workers)
