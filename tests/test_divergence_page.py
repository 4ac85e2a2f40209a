"""docs/how-to/divergence.md quotes what a run says that diverges."""

import re
from pathlib import Path

import pytest
from commands_in_docs import REPOSITORY, blocks
from launched import PLAIN, command, run
from test_faults import faulty

PAGE = REPOSITORY / "docs/how-to/divergence.md"


@pytest.mark.slow
def test_what_is_quoted_is_what_a_run_says(digits: Path, tmp_path: Path) -> None:
    """Updates that are not finite, twice; and a learning rate that no model survives."""
    every = "train.roll_back_after=4"
    said = run(faulty(command(digits, tmp_path / "run", PLAIN, every)), expected=1, FAULT="nan -1 13 1000")
    at_once = ["train.lr=1e6", "train.roll_back_after=3"]
    said += run(command(digits, tmp_path / "at_once", PLAIN, *at_once), expected=1)
    quoted = [" ".join(block.text.split()) for block in blocks(PAGE) if block.language == "text"]
    assert len(quoted) == 3
    for message in quoted:
        pattern = ".+?".join(re.escape(part) for part in message.split("…"))
        assert re.search(f"^{pattern}", said, re.MULTILINE), f"{message}\n{said}"
