from collections.abc import Iterator

import pytest
import torch

from attvae.data.loader import Batch
from attvae.data.to_device import to_device


def batches(count: int) -> Iterator[Batch]:
    for k in range(count):
        places = torch.arange(2) + 2 * k
        yield Batch(torch.full((2, 3, 64, 64), k, dtype=torch.uint8), places, places, torch.ones(2), ())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_batches_are_the_same(device: str) -> None:
    arrived = list(to_device(batches(5), torch.device(device)))
    assert [batch.positions.tolist() for batch in arrived] == [batch.positions.tolist() for batch in batches(5)]
    for k, batch in enumerate(arrived):
        assert batch.x.device.type == device
        assert (batch.x == k).all()
