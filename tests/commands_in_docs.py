"""What README and the documentation tell their reader to type.

A ```bash block runs on any machine, after those above it on its page. One with more in its info string (README: `bash
cluster`; the pages, where it shows above the block: `bash title="On the cluster"`) is for what a laptop lacks.
"""

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
FENCE = re.compile(r"^```(?P<info>[^`\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    runs_anywhere: bool
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def pages() -> list[Path]:
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in FENCE.finditer(text):
        language, _, more = match["info"].strip().partition(" ")
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, language, not more, match["text"]))
    return found


def script(page: Path) -> str:
    """All that the page tells its reader to run on any machine, in order."""
    return "\n".join(block.text for block in blocks(page) if block.language == "bash" and block.runs_anywhere)
