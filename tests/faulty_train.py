"""`launch/train.py` with a fault of one rank (-1: of all): FAULT="KIND RANK WHEN COUNT".

WHEN: the first loss that is broken, of COUNT; or the function of attvae.train at whose call it happens.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from attvae import micro_batch, train
from attvae.cli import app

kind, rank, when, count = os.environ["FAULT"].split()
losses = 0
sound = micro_batch.training_loss


def happen() -> None:
    match kind:
        case "hang":
            time.sleep(3600)
        case "fail":
            raise RuntimeError("the forward pass is broken")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)


def faulty(*args: Any, **kwargs: Any) -> Tensor:
    global losses
    losses += 1
    loss = sound(*args, **kwargs)
    if int(when) <= losses < int(when) + int(count):
        happen()
        if kind == "nan":
            return loss * float("nan")
    return loss


def preceded(function: Callable[..., Any]) -> Callable[..., Any]:
    def planted(*args: Any, **kwargs: Any) -> Any:
        happen()
        return function(*args, **kwargs)

    return planted


if __name__ == "__main__":
    if rank in ("-1", os.environ.get("RANK", "0")):
        if when.isdecimal():
            micro_batch.training_loss = faulty  # type: ignore[assignment]
        else:
            setattr(train, when, preceded(getattr(train, when)))
    app(["train", *sys.argv[1:]])
