"""Output to a terminal or an ssh connection that has closed is lost; what the program does is not."""

import errno
import io
import sys
from typing import Any


class _Lossy(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            return memoryview(data).nbytes


def survive_closed_terminal() -> None:
    """Otherwise the first line that nobody reads ends a rank whose launcher is gone, before it has saved."""
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.BufferedWriter(_Lossy(number, "w", closefd=False)), encoding="utf-8", line_buffering=True)
        for number in (1, 2)
    )
