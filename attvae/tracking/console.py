"""The run on a terminal: a progress line that stays in place, or plain lines where the output is kept."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from attvae.tracking.protocol import Status

_SHOWN = {
    "perf/images_per_s": "{:,.0f} images/s",
    "perf/mfu": "MFU {:.1%}",
    "train/nelbo_nats": "NELBO {:.3f} nats",
    "train/kl_nats": "KL {:.3f} nats",
    "val/nelbo_nats": "val {:.3f} nats",
    "val/bits_per_dim": "val {:.4f} bits/dim",
}
_PLAIN_WIDTH = 200  # of kept output: paths stay in one piece


class Console:
    """Shows a few figures of each row; a tracker. Anything else that is printed meanwhile appears above the bar."""

    def __init__(self, total: int, samples_seen: int = 0, console: RichConsole | None = None) -> None:
        """
        Args:
            total: samples seen at the end of the run.
            samples_seen: where the run starts.
            console: where to write; stdout by default.
        """
        self._console = console or rich_console()
        self._total = total
        self._samples_seen = samples_seen
        self._latest: dict[str, float] = {}
        self._progress: Progress | None = None
        if _in_place(self._console):
            self._progress = Progress(
                BarColumn(bar_width=20), TaskProgressColumn(), TextColumn("{task.description}"), console=self._console
            )
            self._task = self._progress.add_task(self._line({}), total=total, completed=samples_seen)
            self._progress.start()

    def metrics(self, samples_seen: int, values: Mapping[str, float]) -> None:
        shown = {name: value for name, value in values.items() if name in _SHOWN}
        self._samples_seen = samples_seen
        self._latest |= shown
        if self._progress is not None:
            self._progress.update(self._task, completed=samples_seen, description=self._line(self._latest))
        elif shown:
            self.note(self._line(shown))

    def image(self, samples_seen: int, name: str, path: Path) -> None:
        """A terminal shows no pictures."""

    def note(self, text: str) -> None:
        """A line that stays, e.g. where the run is resumed from."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self, status: Status, reason: str = "") -> None:
        if self._progress is not None:
            self._progress.stop()
        outcome = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}[status]
        self.note(f"{outcome} at {self._samples_seen:,} samples" + (f": {reason}" if reason else ""))

    def _line(self, values: Mapping[str, float]) -> str:
        parts = [f"{self._samples_seen:,}/{self._total:,} samples"]
        parts += [text.format(values[name]) for name, text in _SHOWN.items() if name in values]
        rate = values.get("perf/images_per_s", 0.0)
        if rate > 0:
            left_s = round((self._total - self._samples_seen) / rate)
            parts.insert(2, f"ETA {timedelta(seconds=left_s)}")
        return "  ".join(parts)


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[str | float]], console: RichConsole | None = None
) -> None:
    """Prints a table of figures, e.g. columns ("", "nats", "bits/dim"). Numbers are right-aligned, four decimals."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    (console or rich_console()).print(table, markup=False, highlight=False)


def rich_console() -> RichConsole:
    """rich on stdout: as wide as the terminal, or wide enough for paths where the output is kept."""
    console = RichConsole()
    return console if _in_place(console) else RichConsole(width=_PLAIN_WIDTH, force_terminal=False, no_color=True)


def _in_place(console: RichConsole) -> bool:
    # Not `is_terminal`: FORCE_COLOR and its like would send control characters into a log file.
    return console.file.isatty() and not console.is_dumb_terminal


def _cell(value: str | float) -> str:
    match value:
        case str():
            return value
        case int():
            return f"{value:,}"
        case _:
            return f"{value:,.4f}"
