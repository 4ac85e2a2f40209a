"""The doctor's table."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from attvae.doctor.check import Check
from attvae.doctor.deepspeed_env import Written
from attvae.tracking.console import rich_console

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def show(checks: Sequence[Check]) -> None:
    """A row for each check, and what to do where one is not well."""
    table = Table("check", "", "found", "remedy", title_justify="left")
    for check in checks:
        verdict = Text(check.verdict, style=_STYLES[check.verdict])
        table.add_row(check.name, verdict, Text(check.found), Text(check.remedy))
    console = rich_console()
    console.print(table, highlight=False)
    problems, warnings = (sum(check.verdict == verdict for check in checks) for verdict in ("problem", "warning"))
    console.print(f"{problems} problems, {warnings} warnings", highlight=False)


def show_written(written: Written) -> None:
    """The names that went into `.deepspeed_env`, and those that did not."""
    console = rich_console()
    names = ", ".join(written.names) or "no variable: this environment has none that the other hosts need"
    lines = [f"{written.file}: {names}"]
    if written.secrets:
        lines.append(
            f"left out, as secrets: {', '.join(written.secrets)}: put them into files of each host, "
            "such as ~/.aws/credentials and ~/.netrc"
        )
    if written.unquotable:
        lines.append(
            f"left out, as pdsh or a shell would change them: {', '.join(written.unquotable)}: set them on each host"
        )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
