"""`launch/train.py` that notes which sample came at which position, in a file of RECORD for each process."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from attvae import loop
from attvae.cli import app
from attvae.data.loader import Batch

train_batches = loop.train_batches


def recorded(*args: Any, **kwargs: Any) -> Iterator[Batch]:
    with (Path(os.environ["RECORD"]) / f"{os.getpid()}.int64").open("ab", buffering=0) as record:
        for batch in train_batches(*args, **kwargs):
            record.write(torch.stack([batch.positions, batch.ids], 1).numpy().tobytes())
            yield batch


if __name__ == "__main__":
    loop.train_batches = recorded
    app(["train", *sys.argv[1:]])
