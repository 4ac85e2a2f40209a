"""`attvae train`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from attvae.commands.outcome import RANK, RANKS, bad_input, end_silently


def _read(config_file: Path, overrides: list[str]) -> Any:
    """The configuration, or why it cannot be read: perhaps on this host alone, which the other ranks must hear."""
    from attvae.config import load

    try:
        return load(config_file, overrides)
    except ValueError as error:
        return error


def train(
    config_file: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file, such as configs/demo.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as train.lr=3e-4.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default runs/ and CONFIG's stem.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and show the plan, no more.")] = False,
    nodes: Annotated[int | None, typer.Option(min=1, help="With --dry-run: a cluster of so many nodes.")] = None,
    gpus_per_node: Annotated[int | None, typer.Option(min=1, help="With --nodes.")] = None,
    cluster: Annotated[
        Path | None, typer.Option(help="With --nodes: YAML of the constants of a prediction, docs/scale.md.")
    ] = None,
    measured: Annotated[
        Path | None, typer.Option(help="With --nodes: a run folder whose perf/tflops a GPU is taken to reach.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Show the resolved configuration, then DeepSpeed's as a comment.")
    ] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,  # the deepspeed launcher passes it
) -> None:
    """Train a model. The same command again resumes it, or says that it is done."""
    from attvae.run_folder import RunFolder
    from attvae.show import show_deepspeed_config, show_plan, show_run

    with bad_input(found_by_all=True):
        if (nodes is None) != (gpus_per_node is None) or (nodes is not None and not dry_run):
            raise ValueError("--nodes N --gpus-per-node G go together, and with --dry-run: a launcher starts the run")
        if (cluster or measured) and nodes is None:
            raise ValueError("--cluster and --measured are for a prediction: --dry-run --nodes N --gpus-per-node G")
        ranks = nodes * gpus_per_node if nodes and gpus_per_node else RANKS
        folder = RunFolder(out or Path("runs") / config_file.stem)
        given = _read(config_file, overrides or [])
        if isinstance(given, ValueError) and (RANKS == 1 or print_config or dry_run):
            raise given
        if print_config:
            print(given.to_yaml(), end="")
            show_deepspeed_config(given, ranks)
            return
        if dry_run:
            from attvae.train import plan

            on_gpus = gpus_per_node and given.engine.device != "cpu"
            planned = plan(given, ranks, data_needed=False, device="cuda" if on_gpus else None)
            if gpus_per_node:
                from attvae.show_scale import constants, show_commands, show_scale

                assumed = constants(given, cluster, measured)
            if RANK == 0:
                show_plan(planned, ranks)
                if gpus_per_node:
                    show_scale(planned, ranks, gpus_per_node, assumed)
                    show_commands(config_file, overrides or [], out, ranks, gpus_per_node)
            return
    from attvae.engine.rendezvous import FailedOnAnotherRankError
    from attvae.engine.stop import STOPPED, StopRequestedError
    from attvae.loop import DivergedError
    from attvae.train import train as run

    try:
        with bad_input(found_by_all=False):
            run(given, folder.path)
    except StopRequestedError:
        raise typer.Exit(STOPPED) from None
    except DivergedError as error:
        if RANK:
            end_silently(1)
        print(f"attvae: {error}", file=sys.stderr, flush=True)
        raise typer.Exit(1) from None
    except FailedOnAnotherRankError as error:
        end_silently(2 if error.bad_input else 1)
    if RANK == 0:
        show_run(folder)
