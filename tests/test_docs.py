"""README and documentation say what is there: commands, keys, links and files."""

import re
import shlex
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
import yaml
from click import Command, Context, Group, UsageError
from commands_in_docs import REPOSITORY, Block, blocks, pages
from mkdocs.commands.build import build
from mkdocs.config import load_config

from attvae.cli import app as attvae_app
from attvae.config import RunConfig, load
from attvae.search.config import load_search
from data_prep.__main__ import app as data_prep_app

ATTVAE = typer.main.get_command(attvae_app)
DATA_PREP = typer.main.get_command(data_prep_app)
STARTED = {"launch/train.py": "train", "launch/slurm.sbatch": "train", "launch/doctor.py": "doctor"} | {
    "launch/sweep.sbatch": "sweep"
}
"""What launchers are given, and which of attvae's commands takes the words behind it."""

HERE_DOCUMENT = re.compile(r"<<-?'?(\w+)'?(.*?\n).*?^\1$", re.MULTILINE | re.DOTALL)
MENTIONED = re.compile(
    r"`((?:attvae|benchmarks|configs|data_prep|docs|launch|tests)/[\w./-]+\.(?:md|py|yaml|sh|sbatch|c))`"
)


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of each simple command of a shell text; loops' variables have a value."""
    text = HERE_DOCUMENT.sub(r"\2", text).replace("\\\n", " ")
    for line in text.splitlines():
        lexer = shlex.shlex(re.sub(r"\$\w+", "0", line), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if set(word) <= set("();<>|&"):
                yield words
                words = []
            else:
                words.append(word)
        yield words


def ours(words: list[str]) -> tuple[Command, list[str]] | None:
    """The program of ours that a command line starts, by itself or through a launcher, and its arguments."""
    for number, word in enumerate(words):
        if word == "attvae":
            return ATTVAE, words[number + 1 :]
        if word in STARTED:
            return ATTVAE, [STARTED[word], *words[number + 1 :]]
        if words[number : number + 3] == ["python", "-m", "data_prep"]:
            return DATA_PREP, words[number + 3 :]
    return None


def parse(command: Command, words: list[str], parent: Context | None = None) -> Context:
    """The innermost command's context.

    Raises:
        UsageError: it does not take these words.
    """
    context = command.make_context(command.name, list(words), parent=parent)
    if not isinstance(command, Group):
        return context
    _, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    assert inner is not None
    return parse(inner, rest, context)


def commands() -> list[tuple[Block, Command, list[str]]]:
    found = []
    for page in pages():
        indented = [
            Block(page, number, "", False, line)
            for number, line in enumerate(page.read_text().splitlines(), 1)
            if line.startswith("    ")
        ]
        shell = [block for block in blocks(page) if block.language in ("", "bash", "console")]
        for block in shell + indented:
            try:
                lines = list(command_lines(block.text))
            except ValueError:  # no shell
                continue
            found += [(block, *of) for words in lines if (of := ours(words)) and not any("[" in w[:1] for w in of[1])]
    return found


@pytest.mark.parametrize(
    ("block", "command", "words"), [pytest.param(*each, id=f"{each[0]} {' '.join(each[2])}") for each in commands()]
)
def test_every_command_is_one(block: Block, command: Command, words: list[str]) -> None:
    try:
        context = parse(command, words)
    except UsageError as error:
        pytest.fail(f"{block}: {' '.join(words)}: {error.format_message()}")
    configuration = context.params.get("config_file") or context.params.get("search_file")
    if configuration is not None and configuration.parts[0] == "configs":
        read = load if "config_file" in context.params else load_search
        read(REPOSITORY / configuration, context.params["overrides"] or [])


def test_there_are_commands_to_check() -> None:
    assert {page.parent.name for page in {block.page for block, _, _ in commands()}} >= {"how-to", "docs"}
    assert len(commands()) > 60


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_and_named_files_are_there(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    missing += [name for name in MENTIONED.findall(text) if not (REPOSITORY / name).exists() and "NAME" not in name]
    missing += [name for name in re.findall(r"`attvae ([a-z][a-z-]+)", text) if name not in ATTVAE.commands]  # type: ignore[attr-defined]
    assert missing == []


YAML = [
    pytest.param(text, id=f"{block}")
    for page in pages()
    for block in blocks(page)
    for text in (
        [block.text] if block.language == "yaml" else re.findall(r"<<'YAML'\n(.*?)^YAML$", block.text, re.M | re.S)
    )
]


@pytest.mark.parametrize("text", YAML)
def test_every_configuration_loads(text: str, tmp_path: Path) -> None:
    """Each is a run's or a search's; a part of one stands on the smallest configuration."""
    tree = yaml.safe_load(text)
    base = tree.get("base", "configs/test/tiny.yaml")
    tree["base"] = str(REPOSITORY / "configs" / base.removeprefix("../").removeprefix("configs/"))
    file = tmp_path / "file.yaml"
    file.write_text(yaml.safe_dump(tree))
    if "space" in tree:
        assert load_search(file, []).space
    else:
        assert isinstance(load(file), RunConfig)


class Fetched(HTMLParser):
    """The addresses of all that a browser fetches with a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(given.get("src") or "")
        elif tag == "link" and given.get("rel") in ("stylesheet", "preconnect", "icon", "preload"):
            self.addresses.append(given.get("href") or "")


@pytest.mark.slow
def test_the_site_fetches_nothing_from_elsewhere(tmp_path: Path) -> None:
    config = load_config(str(REPOSITORY / "mkdocs.yml"), strict=True, site_dir=str(tmp_path / "site"))
    build(config)
    built = list((tmp_path / "site").rglob("*.html"))
    assert len(built) > 30
    for page in built:
        parser = Fetched()
        parser.feed(page.read_text())
        assert len(parser.addresses) > 3
        assert [address for address in parser.addresses if "//" in address] == []
