"""`launch/train.py` with a fault: FAULT="KIND RANK FIRST COUNT" breaks so many losses of a rank (-1: of all ranks)."""

import os
import sys
import time
from typing import Any

from torch import Tensor

from attvae import micro_batch
from attvae.cli import app

kind, rank, first, count = os.environ["FAULT"].split()
losses = 0
sound = micro_batch.training_loss


def faulty(*args: Any, **kwargs: Any) -> Tensor:
    global losses
    losses += 1
    loss = sound(*args, **kwargs)
    if rank in ("-1", os.environ.get("RANK", "0")) and int(first) <= losses < int(first) + int(count):
        match kind:
            case "hang":
                time.sleep(3600)
            case "fail":
                raise RuntimeError("the forward pass is broken")
            case "nan":
                return loss * float("nan")
    return loss


if __name__ == "__main__":
    micro_batch.training_loss = faulty  # type: ignore[assignment]
    app(["train", *sys.argv[1:]])
