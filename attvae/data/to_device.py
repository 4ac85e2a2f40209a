"""Images on their way to the device, ahead of their use."""

from collections.abc import Iterator

import torch

from attvae.data.loader import Batch


def to_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """The same batches with `x` on the device; a GPU receives each one while it still works on the one before.

    Raises:
        as `batches` does, when the failing batch is due.
    """
    if device.type != "cuda":
        yield from batches
        return
    copies = torch.cuda.Stream(device)

    def send(batch: Batch) -> Batch:
        with torch.cuda.stream(copies):  # from pinned memory, or the copy would wait for the GPU
            return batch._replace(x=batch.x.pin_memory().to(device, non_blocking=True))

    ahead: Batch | None = None
    for batch in batches:
        current, ahead = ahead, send(batch)
        if current is not None:
            yield _arrived(current, copies)
    if ahead is not None:
        yield _arrived(ahead, copies)


def _arrived(batch: Batch, copies: torch.cuda.Stream) -> Batch:
    now = torch.cuda.current_stream(batch.x.device)
    now.wait_stream(copies)
    batch.x.record_stream(now)  # its memory is not used anew before the work that reads it is done
    return batch
