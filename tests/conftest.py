"""What every test shares: one thread, and the digits prepared once."""

from pathlib import Path

import pytest
import torch

from data_prep.digits import dataset
from data_prep.writer import prepare

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the prepared digits."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare(dataset(), folder)
    return folder
