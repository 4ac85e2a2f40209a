"""What a preparation has made, as a table."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from attvae.data.manifest import Manifest, Split
from data_prep.dataset import Rejected

LISTED = 20
REJECTED = "rejected.json"
KEPT_WIDTH = 160  # of output that goes to a file


def print_summary(found: Manifest, rejected: Mapping[Split, Sequence[Rejected]]) -> None:
    """Prints samples, shards, bytes and rejected files of each split, and the first rejected files with the reasons."""
    table = Table()
    table.add_column("split")
    for column in ("samples", "shards", "bytes", "rejected"):
        table.add_column(column, justify="right")
    for split, shards in found.splits.items():
        size = sum(shard.bytes for shard in shards)
        figures = (found.samples(split), len(shards), size, len(rejected[split]))
        table.add_row(split, *(f"{figure:,}" for figure in figures))
    console = Console()
    (console if console.is_terminal else Console(width=KEPT_WIDTH)).print(table)
    files = [entry for entries in rejected.values() for entry in entries]
    for file, reason in files[:LISTED]:
        print(f"rejected {file}: {reason}")
    if len(files) > LISTED:
        print(f"... and {len(files) - LISTED:,} more in {REJECTED}")
