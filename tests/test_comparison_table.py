"""README's comparison with other code: each cell has a source, and ours are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECTION = (ROOT / "README.md").read_text().partition("## Beside other")[2].partition("\n## ")[0]
TABLE, _, SOURCES = SECTION.partition("\nSources:\n")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines() if line.startswith("|")]
LISTED = dict(re.findall(r"\[(\d+)\] (.+?)(?=\[\d+\] |\n\* |\Z)", SOURCES, re.DOTALL))


def test_each_cell_has_a_source_that_is_listed() -> None:
    head, _, *rows = ROWS
    assert len(head) == 6
    assert len(rows) >= 10
    for row in rows:
        assert len(row) == len(head), row
        for cell in row[1:]:
            assert (mark := re.search(r"\[(\d+)\]$", cell)), f"{row[0]}: {cell}"
            assert mark[1] in LISTED, f"{row[0]}: {cell}"


def test_each_column_has_sources_of_its_own() -> None:
    for column in range(1, 6):
        tens = {int(number) // 10 for row in ROWS[2:] for number in re.findall(r"\[(\d+)\]", row[column])}
        assert tens == {column - 1}, ROWS[0][column]


def test_no_source_is_left_over() -> None:
    assert set(re.findall(r"\[(\d+)\]", TABLE)) == LISTED.keys()


def test_our_sources_are_there() -> None:
    ours = " ".join(text for number, text in LISTED.items() if int(number) < 10)
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for named in re.findall("`([^`]+)`", ours):
        program, _, rest = named.partition(" ")
        if program == "make":
            assert rest in targets, named
        else:
            assert (ROOT / (rest or program)).exists(), named
