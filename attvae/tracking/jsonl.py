"""The journal: every figure of a run, one JSON object a line. The record that other trackers are fed from."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

from attvae.tracking.protocol import Status

Row = dict[str, float]
"""`samples_seen` (int), `time` (Unix time in seconds) and names → numbers."""


class Journal:
    """Appends to `metrics.jsonl`; a tracker. A line is in the operating system's hands when `metrics` returns.

    A name is written once at each step: a figure that a killed run had already written after its last checkpoint was
    saved is not written again.

    JSON has no NaN or infinity: they are written as the strings "NaN", "Infinity" and "-Infinity", and `read` turns
    them back into floats.
    """

    def __init__(self, path: Path, resume_at: int | None) -> None:
        """
        Args:
            resume_at: the samples seen of the checkpoint that the run goes on from: later lines and a half-written
                last line are dropped, so that the steps which are run again stand there once. None: a run from
                scratch, the journal starts empty.

        Raises:
            ValueError: a line other than a half-written last one is unreadable.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [] if resume_at is None else [row for row in read(path) if row["samples_seen"] <= resume_at]
        aside = path.with_name(path.name + ".tmp")
        with aside.open("w", encoding="utf-8") as file:
            file.writelines(_line(row) for row in kept)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        self._file = path.open("a", encoding="utf-8")
        self._step = resume_at
        self._names = {name for row in kept if row["samples_seen"] == resume_at for name in row}

    def metrics(self, samples_seen: int, values: Mapping[str, float]) -> None:
        assert values.keys().isdisjoint({"samples_seen", "time"}), "samples_seen and time are the journal's own names"
        if samples_seen != self._step:
            self._step, self._names = samples_seen, set()
        figures = {name: float(value) for name, value in values.items() if name not in self._names}
        if not figures:
            return
        self._names |= figures.keys()
        self._file.write(_line({"samples_seen": samples_seen, "time": round(time.time(), 3), **figures}))
        self._file.flush()

    def image(self, samples_seen: int, name: str, path: Path) -> None:
        """Pictures lie in the run folder already."""

    def close(self, status: Status, reason: str = "") -> None:
        self._file.close()


def read(path: Path) -> list[Row]:
    """The rows of a journal in the order written; none if there is no such file.

    Raises:
        ValueError: a line other than a half-written last one is unreadable.
    """
    return read_from(path, 0)[0] if path.exists() else []


def read_from(path: Path, offset: int) -> tuple[list[Row], int]:
    """The rows after the first `offset` bytes, and the offset of what comes after them.

    A last line without a line end is unfinished: it is left for the next call.

    Raises:
        ValueError: a finished line is unreadable.
    """
    with path.open("rb") as file:
        file.seek(offset)
        finished, newline, _ = file.read().rpartition(b"\n")
    rows = [_row(path, line) for line in finished.split(b"\n")] if newline else []
    return rows, offset + len(finished) + len(newline)


def _line(row: Row) -> str:
    return json.dumps({name: _writable(value) for name, value in row.items()}, allow_nan=False) + "\n"


def _writable(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _row(path: Path, line: bytes) -> Row:
    try:
        row = json.loads(line)
        return {"samples_seen": int(row["samples_seen"])} | {
            name: float(value) for name, value in row.items() if name != "samples_seen"
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path}: {line[:80]!r} is not a line of a journal ({error}): a JSON object with samples_seen, time and "
            "numbers; remove or mend that line"
        ) from error
