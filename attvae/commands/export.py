"""`attvae export`."""

from pathlib import Path
from typing import Annotated

import typer

from attvae.commands.outcome import bad_input


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run.")],
    out: Annotated[Path, typer.Option(help="Export folder to write.")],
    programs: Annotated[
        str,
        typer.Option(
            "--with", metavar="FORMATS", help="torch-export, onnx or both with a comma: encoder and sampler too."
        ),
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Export an unfinished run too: the model card says so.")
    ] = False,
) -> None:
    """Make a run's averaged weights a folder that travels: safetensors, a model card, programs. docs/export.md"""
    from attvae.export_run import export_run
    from attvae.programs import parse_formats

    with bad_input(found_by_all=True):
        config = export_run(run, out, parse_formats(programs), force=force)
    seen = f"{config.samples_seen:,} samples seen; attvae.load, attvae sample and attvae evaluate take this folder"
    print(f"{out}: {seen}")
