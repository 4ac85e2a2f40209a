"""A comparison on a terminal."""

from collections.abc import Sequence

from attvae.compare.tables import Table, all_tables, not_comparable
from attvae.tracking.console import print_table
from attvae.tracking.run import Run

_COLUMNS = 6
"""Side by side; what a table has more comes below."""


def show_comparison(runs: Sequence[Run]) -> None:
    for reason in not_comparable(runs):
        print(f"Careful: {reason}")
    for table in all_tables(runs):
        for part in _parts(table):
            print_table(part.title, part.columns, part.rows)


def _parts(table: Table) -> list[Table]:
    """The table, cut between columns where it is too wide."""
    starts = range(1, len(table.columns), _COLUMNS)
    return [
        table._replace(
            title=table.title if start == 1 else f"{table.title} (more)",
            columns=[table.columns[0], *table.columns[start : start + _COLUMNS]],
            rows=[[row[0], *row[start : start + _COLUMNS]] for row in table.rows],
        )
        for start in starts
    ]
