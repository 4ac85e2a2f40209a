"""Each command of README, tutorial and how-tos, in order, in a fresh clone, as a newcomer types them.

To save time some things are other than for the newcomer: `make demo` has a twentieth of its samples, each `attvae
train` ends after 2,000, and of make's other targets (the suites, which run by themselves) only the plan is made. The
environment is that of the tests. What is for a cluster or a longer wait is not run; tests/test_docs.py reads it.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands_in_docs import REPOSITORY, blocks, script
from test_docs import command_lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

README, TUTORIAL = REPOSITORY / "README.md", REPOSITORY / "docs/tutorial.md"
HOW_TOS = [page for page in sorted((REPOSITORY / "docs/how-to").glob("*.md")) if script(page)]

SHORTER = """
set -euo pipefail
make() { if [[ $1 == demo ]]; then command make "$@"; else command make --dry-run "$@" >/dev/null; fi; }
attvae() {
    if [[ $1 == train && "$*" != *--dry-run* ]]; then set -- "$@" train.samples=2000; fi
    command attvae "$@"
}
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with what is not committed yet, and with the environment that the tests run in."""
    folder = tmp_path_factory.mktemp("newcomer") / "attvae"
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(folder)], check=True)
    changed = ["git", "ls-files", "-z", "--modified", "--others", "--exclude-standard"]
    for name in filter(None, subprocess.check_output(changed, cwd=REPOSITORY, text=True).split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / name).exists():
            shutil.copy(REPOSITORY / name, folder / name)
        else:
            (folder / name).unlink()
    (folder / ".venv").symlink_to(sys.prefix)
    for name in ("pyproject.toml", "constraints.txt"):  # the clone's are newer than .venv/ready, and would be installed
        os.utime(folder / name, (0, 0))
    demo = folder / "configs/demo.yaml"
    demo.write_text(re.sub(r"(?m)^  samples: 270000$", "  samples: 13500", demo.read_text()))
    assert "samples: 13500" in demo.read_text()
    return folder


def walk(clone: Path, page: Path, activated: bool = False) -> str:
    """Runs what the page tells its reader to type; what it printed."""
    before = "source .venv/bin/activate" if activated else ""
    own = {"PYTHONPATH": str(clone)}  # the environment's attvae is the repository's
    ran = subprocess.run(
        ["bash", "-c", "\n".join([SHORTER, before, "set -x", script(page)])],
        cwd=clone,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-6000:]
    for words in command_lines(script(page)):
        if "--out" in words and "runs/diverges" not in words:
            assert (clone / words[words.index("--out") + 1]).exists(), words
    return ran.stdout


def test_readme(clone: Path) -> None:
    assert "make demo" in script(README)
    walk(clone, README)
    assert (clone / "runs/demo/report.html").is_file()


def test_tutorial(clone: Path) -> None:
    said = walk(clone, TUTORIAL)
    assert (clone / "runs/demo/report.html").is_file()
    assert (clone / "runs/my_pictures/report.html").is_file()
    said_lines = [figureless(line) for line in said.splitlines()]
    for block in blocks(TUTORIAL):
        for line in block.text.splitlines() if block.language == "text" else ():
            assert any(each.startswith(figureless(line)) for each in said_lines), f"{block}: {line}"


def figureless(line: str) -> str:
    """A line of a table or a message without its figures, column widths and rules: these may be others elsewhere."""
    return " ".join(re.sub(r"[\d.,:%┃│]+", " ", line).split())


@pytest.mark.parametrize("page", HOW_TOS, ids=lambda page: page.stem)
def test_how_to(clone: Path, page: Path) -> None:
    walk(clone, page, activated=True)
