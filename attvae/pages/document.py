"""A page: its frame, its sections, its tables."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import attvae
from attvae.run_folder import write_text

STYLE = Path(__file__).with_name("style.css")
"""Of all pages."""

_LONG, _VERY_LONG = 24, 120  # characters of a table's cell

_FRAME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{title} – attvae {command}</title>
<style>
{style}</style>
</head>
<body>
{body}
<footer>attvae {version}</footer>
</body>
</html>
"""


class Section(NamedTuple):
    """
    Attributes:
        name: its id.
        title: text.
        content: HTML.
    """

    name: str
    title: str
    content: str


def document(
    title: str, command: str, lead: Sequence[str], sections: Sequence[Section], styles: Sequence[Path] = ()
) -> str:
    """The whole file.

    Args:
        command: what of attvae has made it.
        lead: HTML between the heading and the links to the sections.
        styles: files of the page's own, beside that of all pages.
    """
    links = " ".join(f'<a href="#{section.name}">{escape(section.title)}</a>' for section in sections)
    body = [
        f"<h1>{escape(title)}</h1>",
        *lead,
        f"<nav>{links}</nav>",
        *(
            f'<section id="{name}"><h2 id="{name}-title">{escape(heading)}</h2>\n{content}\n</section>'
            for name, heading, content in sections
        ),
    ]
    style = "".join(path.read_text() for path in (STYLE, *styles))
    return _FRAME.format(
        title=escape(title), command=command, style=style, body="\n".join(body), version=attvae.__version__
    )


def table(label: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text that scrolls by itself where it is too wide. The first cell of a row says what the row is about.

    Args:
        label: what it shows, for those who do not see where it stands.
    """
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = (f'<tr><th scope="row">{escape(row[0])}</th>{"".join(map(_cell, row[1:]))}</tr>\n' for row in rows)
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(label)}">'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(body)}</tbody>\n</table></div>"
    )


def _cell(text: str) -> str:
    if len(text) <= _LONG:
        return f"<td>{escape(text)}</td>"
    if len(text) <= _VERY_LONG:
        return f'<td class="long">{escape(text)}</td>'
    shown, folded = escape(text[:_VERY_LONG]), escape(text[_VERY_LONG:])
    return f'<td class="long"><details><summary>{shown} …</summary>{folded}</details></td>'


def write_page(text: str, out: Path) -> None:
    """Replaces `out`, whole or not at all; creates its folder.

    Raises:
        ValueError: `out` cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text)
    except OSError as error:
        raise ValueError(f"cannot write the page {out} ({error.strerror}): choose another with --out") from error
