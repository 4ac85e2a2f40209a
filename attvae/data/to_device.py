"""Images and the noise that goes with them on their way to the device, ahead of their use."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from attvae.data.loader import Batch

T = TypeVar("T")


class Fed(NamedTuple):
    """What one forward pass takes: a batch whose `x` is on the device, and its noise, there too."""

    batch: Batch
    noise: list[Tensor]


def to_device(
    batches: Iterator[Batch], device: torch.device, noise: Callable[[Batch], list[Tensor]], ahead: int = 1
) -> Iterator[Fed]:
    """The same batches, with their noise, on the device.

    For a GPU, a thread makes the noise and sends both while the GPU works on the batches before: numpy lets go of the
    interpreter while it fills an array. On a CPU all of this waits until the batch is due.

    Args:
        noise: makes that of a batch, in main memory.
        ahead: batches on their way beside the one that is due: those of one update, which are taken all at once.

    Raises:
        as `batches` and `noise` do, when the failing batch is due.
    """
    if device.type != "cuda":
        for batch in batches:
            yield Fed(batch, noise(batch))
        return
    copies = torch.cuda.Stream(device)

    def send(batch: Batch) -> tuple[Fed, torch.cuda.Event]:
        made = noise(batch)
        with torch.cuda.stream(copies):  # from pinned memory, or the copy would wait for the GPU
            x, *made = (tensor.pin_memory().to(device, non_blocking=True) for tensor in (batch.x, *made))
            return Fed(batch._replace(x=x), made), copies.record_event()

    for fed, sent in made_ahead(batches, send, ahead):
        now = torch.cuda.current_stream(device)
        now.wait_event(sent)
        for tensor in (fed.batch.x, *fed.noise):
            tensor.record_stream(now)  # its memory is not used anew before the work that reads it is done
        yield fed


def made_ahead(batches: Iterator[Batch], make: Callable[[Batch], T], ahead: int) -> Iterator[T]:
    """`make(batch)` for each batch, from a thread that starts `ahead` batches before the one that is due."""
    maker = ThreadPoolExecutor(1, "noise")
    begun: deque[Future[T]] = deque()

    def begin() -> None:
        try:
            begun.append(maker.submit(make, next(batches)))
        except StopIteration:
            pass
        except Exception as error:
            failed: Future[T] = Future()
            failed.set_exception(error)
            begun.append(failed)

    try:
        for _ in range(ahead):
            begin()
        while True:
            begin()
            if not begun:
                return
            yield begun.popleft().result()
    finally:
        maker.shutdown(cancel_futures=True)
