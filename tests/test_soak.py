"""The watch over memory and open files of a long run: that it sees growth, and a short run that has none."""

from pathlib import Path

import pytest
import yaml

from benchmarks import soak
from benchmarks.soak import Epoch


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (Epoch(3, 102e6, 9, 204e6, 20), []),
        (Epoch(3, 104e6, 9, 204e6, 20), ["memory of the trainer grew by 4.0%"]),
        (Epoch(3, 102e6, 9, 220e6, 20), ["memory of the workers grew by 10.0%"]),
        (Epoch(3, 102e6, 11, 204e6, 20), ["open files of the trainer grew from 9 to 11"]),
        (Epoch(3, 102e6, 9, 204e6, 22), ["open files of the workers grew from 20 to 22"]),  # one an epoch
        (Epoch(3, 102e6, 9, 204e6, 21), []),
    ],
)
def test_growth_after_the_second_epoch_is_a_fault(last: Epoch, said: list[str]) -> None:
    assert soak.faults([Epoch(0, 50e6, 5, 0, 0), Epoch(1, 100e6, 9, 200e6, 20), last]) == said


@pytest.mark.slow
def test_a_short_run_keeps_its_memory_and_its_files(tmp_path: Path) -> None:
    """Of 5 epochs over 40 shards, with two workers."""
    soak.make_data(tmp_path / "data", "png", 40)
    epoch = 40 * soak.SHARD
    config = tmp_path / "soak.yaml"
    config.write_text(yaml.safe_dump(soak.configuration(tmp_path / "data", 2, epoch, 5 * epoch // soak.BATCH)))
    epochs = soak.watch(config, tmp_path / "run", 2, epoch)
    assert len(epochs) >= 4
    assert soak.faults(epochs) == []
