import os
import shutil
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
import webdataset as wds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from attvae.data.config import DataConfig
from attvae.data.loader import Batch, eval_batches, open_manifest, run, train_batches, train_pipeline
from attvae.data.manifest import Manifest
from attvae.data.shard import DamagedError

Prepare = Callable[..., Manifest]


def join(batches: list[Batch]) -> Batch:
    *columns, damaged = zip(*batches, strict=True)
    return Batch(*(torch.cat(column) for column in columns), sum(damaged, ()))


def equal(a: Batch, b: Batch) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True)) and a.damaged == b.damaged


def rows(batch: Batch, where: slice | torch.Tensor) -> Batch:
    return Batch(*(column[where] for column in batch[:4]), batch.damaged)


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


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_the_stream_is_the_same_for_any_ranks_and_workers(
    prepare_images: Prepare, images: np.ndarray, config: DataConfig, ranks: int, workers: int
) -> None:
    """With flips, crops and binarisation on, over three epochs of five shards: fewer than most ranks × workers."""
    manifest = prepare_images(images, binary=True)
    config = config.model_copy(update={"crop_pad": 1})
    alone = stream(manifest, config, samples=72, batch=24)
    assert alone.positions.tolist() == list(range(72))
    spread = stream(manifest, config.model_copy(update={"workers": workers}), samples=72, ranks=ranks, batch=24)
    assert equal(spread, alone)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 3])
def test_image_files_come_in_the_same_stream_as_raw_pixels(
    prepare_images: Prepare, images: np.ndarray, config: DataConfig, ranks: int, workers: int, tmp_path: Path
) -> None:
    raw = stream(prepare_images(images), config, samples=60)
    shutil.rmtree(tmp_path / "images")
    png = prepare_images(images, format="png")
    config = config.model_copy(update={"workers": workers})
    assert equal(stream(png, config, samples=60, ranks=ranks), raw)


def test_a_stage_between_decode_and_collate(prepare_images: Prepare, images: np.ndarray, config: DataConfig) -> None:
    """As webdataset's users put it there: a function of a sample's dictionary."""
    manifest = prepare_images(images, format="png")
    pipeline = train_pipeline(manifest, config, 0, 0, 12, 0, 1)
    plain = next(run(pipeline, 0))

    def invert(sample: dict) -> dict:
        return sample | {"pixels": 255 - sample["pixels"]}

    pipeline.pipeline.insert(2, wds.map(invert))
    inverted = next(run(pipeline, 0))
    assert torch.equal(inverted.x, 255 - plain.x)
    assert torch.equal(inverted.ids, plain.ids)


def test_larger_images_are_scaled_to_the_size_that_a_run_states(
    prepare_images: Prepare, config: DataConfig, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    prepare_images(images)
    manifest = open_manifest(config.model_copy(update={"size": 4}))
    assert manifest.spec.shape == (3, 4, 4)
    x = join(whole(manifest, config)).x.numpy().transpose(0, 2, 3, 1)
    assert np.abs(x - images.reshape(6, 4, 2, 4, 2, 3).astype(int).sum((2, 4)) / 4).max() <= 0.5


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("format", ["raw", "png"])
def test_damaged_samples_have_no_weight_where_they_are_to_be_skipped(
    prepare_images: Prepare, images: np.ndarray, config: DataConfig, format: str, workers: int, tmp_path: Path
) -> None:
    """A shard that is cut, one that is missing, and a flipped bit: 2 + 5 + 1 of 23 images."""
    manifest = prepare_images(images, format=format)
    config = config.model_copy(update={"workers": workers, "flip": "none"})
    whole_stream = stream(manifest, config, samples=69, batch=23)
    extension = {"raw": "npy", "png": "png"}[format]
    cut, missing, flipped = (tmp_path / "images" / f"train-00000{number}.tar" for number in (1, 2, 3))
    os.truncate(cut, cut.read_bytes().index(f"000000008.{extension}".encode()) + 530)
    missing.unlink()
    content = bytearray(flipped.read_bytes())
    content[content.index(f"000000016.{extension}".encode()) + 512 + 40] ^= 1
    flipped.write_bytes(content)

    with pytest.raises(DamagedError, match=r"train-00000[123]\.tar"):
        stream(manifest, config, samples=69, batch=23)
    found = stream(manifest, config.model_copy(update={"on_damage": "skip"}), samples=69, batch=23)
    lost = {8, 9, *range(10, 15), 16}
    assert torch.equal(found.ids, whole_stream.ids)
    assert found.weights.tolist() == [float(i not in lost) for i in found.ids.tolist()]
    sound = found.weights == 1
    assert torch.equal(found.x[sound], whole_stream.x[sound])
    stand_ins = {image.numpy().tobytes() for image in found.x[~sound]}
    assert stand_ins <= {image.numpy().tobytes() for image in found.x[sound]}
    for name in ("train-000001.tar is cut off", "train-000002.tar is missing", "train-000003.tar, sample 000000016"):
        assert any(name in message for message in found.damaged)
    assert len(set(found.damaged)) == 3


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(start=st.integers(0, 100), batch=st.integers(1, 9), seed=st.integers(0, 2**30))
def test_starting_anywhere_equals_no_interruption(digits: Path, start: int, batch: int, seed: int) -> None:
    manifest = Manifest.read(digits)
    config = DataConfig(path=digits, window=100, flip="horizontal")
    through = stream(manifest, config, samples=start + 2 * batch, seed=seed, batch=1)
    resumed = stream(manifest, config, samples=2 * batch, start=start, seed=seed, batch=batch)
    assert equal(resumed, rows(through, slice(start, None)))


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
    padded = join(batches)
    assert len(padded.ids) == -(-23 // ranks) * ranks
    found = rows(padded, padded.weights == 1)
    assert sorted(found.ids.tolist()) == list(range(23))
    assert torch.equal(found.positions, found.ids)
    assert np.array_equal(found.x.numpy(), images[found.ids.numpy()].transpose(0, 3, 1, 2))
    if ranks == 1:
        assert found.ids.tolist() == list(range(23))
        assert [len(batch.ids) for batch in batches] == [8, 8, 7]


def test_more_ranks_and_workers_than_images(prepare_images: Prepare, images: np.ndarray, config: DataConfig) -> None:
    batches = whole(prepare_images(images[:2]), config.model_copy(update={"workers": 2}), ranks=3)
    assert [batch.ids.tolist() for batch in batches] == [[0], [1], [1]]
    assert [batch.weights.tolist() for batch in batches] == [[1], [1], [0]]


def test_a_draw_of_evaluation_depends_on_the_image_alone(
    prepare_images: Prepare, images: np.ndarray, config: DataConfig
) -> None:
    manifest = prepare_images(images, binary=True)
    reference = join(whole(manifest, config))
    assert equal(reference, join(whole(manifest, config, batch=5)))
    spread = join(whole(manifest, config, ranks=2))
    spread = rows(spread, spread.weights == 1)
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
    prepare_images: Prepare, images: np.ndarray, config: DataConfig, workers: int, tmp_path: Path
) -> None:
    manifest = prepare_images(images)
    config = config.model_copy(update={"workers": workers})
    damaged = tmp_path / "images" / "train-000002.tar"
    os.truncate(damaged, 2500)
    with pytest.raises(
        DamagedError,
        match=r"^shard \S*/train-000002\.tar is damaged after 1 samples .cut off within a header.: prepare the data",
    ):
        stream(manifest, config, samples=60)
    damaged.unlink()
    with pytest.raises(DamagedError, match=r"^shard \S*/train-000002\.tar is missing: prepare the data again$"):
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
