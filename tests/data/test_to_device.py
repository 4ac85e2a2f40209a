import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from attvae.data.loader import Batch
from attvae.data.to_device import made_ahead, to_device
from attvae.seeding import Purpose, latent_noise

SHAPES = [(4, 16, 16), (2, 32, 32)]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


class DiskError(Exception):
    pass


def batches(count: int, *, broken: bool = False) -> Iterator[Batch]:
    for k in range(count):
        places = torch.arange(2) + 2 * k
        yield Batch(torch.full((2, 3, 64, 64), k, dtype=torch.uint8), places, places, torch.ones(2), ())
    if broken:
        raise DiskError


def noise(batch: Batch) -> list[Tensor]:
    return latent_noise(0, Purpose.LATENT, [(int(p), 0) for p in batch.positions], SHAPES)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ahead", [1, 3, 9])
def test_the_batches_are_the_same_and_the_noise_is_theirs(device: str, ahead: int) -> None:
    arrived = list(to_device(batches(5), torch.device(device), noise, ahead))
    assert [fed.batch.positions.tolist() for fed in arrived] == [batch.positions.tolist() for batch in batches(5)]
    for k, (fed, batch) in enumerate(zip(arrived, batches(5), strict=True)):
        assert fed.batch.x.device.type == device
        assert (fed.batch.x == k).all()
        for found, expected in zip(fed.noise, noise(batch), strict=True):
            assert found.device.type == device
            assert torch.equal(found.cpu(), expected)


@pytest.mark.gpu
def test_work_in_the_queue_of_the_gpu_reads_what_it_was_given() -> None:
    """The memory of a batch is not used anew while the GPU is behind."""
    device = torch.device("cuda")
    busy, sums, expected = torch.randn(4096, 4096, device=device), [], []
    for fed, batch in zip(to_device(batches(40), device, noise), batches(40), strict=True):
        for _ in range(5):
            busy = (busy @ busy).clamp(-1, 1)
        sums.append(sum(eps.double().sum() for eps in fed.noise) + fed.batch.x.sum())
        expected.append(float(sum(eps.double().sum() for eps in noise(batch)) + batch.x.sum()))
    assert [float(total) for total in sums] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ahead", [1, 9])
def test_an_error_comes_when_its_batch_is_due(device: str, ahead: int) -> None:
    source = to_device(batches(3, broken=True), torch.device(device), noise, ahead)
    assert [int(next(source).batch.positions[0]) for _ in range(3)] == [0, 2, 4]
    with pytest.raises(DiskError):
        next(source)


@pytest.mark.parametrize("ahead", [1, 3])
def test_the_thread_works_ahead_of_the_batch_that_is_due(ahead: int) -> None:
    made = threading.Semaphore(0)
    taken: list[int] = []

    def make(batch: Batch) -> int:
        made.release()
        return int(batch.positions[0]) // 2

    def source() -> Iterator[Batch]:
        for k, batch in enumerate(batches(10)):
            taken.append(k)
            yield batch

    results = made_ahead(source(), make, ahead)
    for k in range(10 - ahead):
        assert next(results) == k
        assert taken == list(range(k + ahead + 1)), "no further ahead than that"
    for _ in range(10):
        assert made.acquire(timeout=10), "what is on its way is made without being asked for"
    assert list(results) == list(range(10 - ahead, 10))


def test_no_thread_is_left_when_the_reader_goes() -> None:
    results = made_ahead(batches(10), lambda batch: batch, 3)
    next(results)
    assert any(thread.name.startswith("noise") for thread in threading.enumerate())
    results.close()
    assert not any(thread.name.startswith("noise") for thread in threading.enumerate())
