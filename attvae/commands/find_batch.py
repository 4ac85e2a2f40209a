"""`attvae find-batch`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from attvae.commands.outcome import bad_input


def find_batch(
    config_file: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, such as configs/demo.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as engine.precision=bf16.")
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks of the run that is planned.")] = 1,
) -> None:
    """The largest micro-batch that fits on this device, found by trying."""
    from attvae import find_batch as search
    from attvae.config import load
    from attvae.train import plan

    with bad_input(found_by_all=True):
        cfg = load(config_file, [*(overrides or []), "engine.micro_batch=null"])
        planned = plan(cfg, ranks, data_needed=False)
        spec = planned.manifest.spec if planned.manifest else cfg.data.spec
        assert spec is not None
        print(f"{config_file}: a rank has {planned.batch.micro_batch} images of each update", flush=True)
        try:
            trials = search.find_batch(cfg, spec, ranks, search.show_trial)
        except search.TrialFailedError as error:
            print(f"attvae: {error}", file=sys.stderr, flush=True)
            raise typer.Exit(1) from None
    search.show_result(trials, cfg, ranks)
    if not any(trial.fits for trial in trials):
        raise typer.Exit(1)
