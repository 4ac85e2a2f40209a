"""The `attvae` command: what each of its commands does is in attvae.commands."""

from typing import Annotated

import typer

import attvae
from attvae.closed_terminal import survive_closed_terminal
from attvae.commands.bench import bench
from attvae.commands.claims import claims
from attvae.commands.compare import compare
from attvae.commands.compress import compress, decompress
from attvae.commands.doctor import doctor
from attvae.commands.evaluate import evaluate
from attvae.commands.export import export
from attvae.commands.find_batch import find_batch
from attvae.commands.import_official import import_official
from attvae.commands.profile import profile
from attvae.commands.report import report
from attvae.commands.sample import sample
from attvae.commands.sweep import sweep
from attvae.commands.sync import sync
from attvae.commands.train import train
from attvae.engine import launcher as _launcher  # noqa: F401 - notes at once who started this process

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Deep attentive hierarchical VAEs: train, evaluate.",
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"attvae {attvae.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


# In the order of --help. A command's name is that of its function.
for command in (
    train,
    evaluate,
    sweep,
    claims,
    compare,
    report,
    sync,
    find_batch,
    profile,
    doctor,
    compress,
    decompress,
    export,
    sample,
    import_official,
):
    app.command()(command)
app.add_typer(bench, name="bench")


def run() -> None:
    """The command, whose output may be lost without harm."""
    survive_closed_terminal()
    app()


if __name__ == "__main__":
    run()
