"""What every test shares: one thread, signals that arrive, and the digits prepared once."""

import signal
from pathlib import Path

import pytest
import torch

from data_prep.digits import dataset
from data_prep.writer import prepare

torch.set_num_threads(1)
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:  # in the background, or under nohup: every child would inherit it
        signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the prepared digits."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    prepare(dataset(), folder)
    return folder
