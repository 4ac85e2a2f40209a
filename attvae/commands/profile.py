"""`attvae profile`."""

from pathlib import Path
from typing import Annotated

import typer

from attvae.commands.outcome import bad_input


def profile(
    config_file: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, such as configs/demo.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as engine.precision=bf16.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder; by default runs/profile/ and CONFIG's stem.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images of a step; by default a micro-batch.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps that are timed, and as many that are traced.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="A document in place of the tables.")] = False,
) -> None:
    """Where the time of a training step goes, on random images: operations, parts, a trace. docs/throughput.md"""
    import json

    from attvae.config import load
    from attvae.profile import profile as run
    from attvae.profile import show_profile
    from attvae.train import plan

    with bad_input(found_by_all=True):
        cfg = load(config_file, overrides or [])
        planned = plan(cfg, 1, data_needed=False)
        spec = planned.manifest.spec if planned.manifest else cfg.data.spec
        assert spec is not None
        folder = out or Path("runs", "profile", config_file.stem)
        found = run(cfg, spec, batch or planned.batch.micro_batch, steps, folder)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        show_profile(found)
