"""`attvae evaluate`."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from attvae.commands.outcome import RANK, RANKS, bad_input, end_silently


def evaluate(
    trained: Annotated[Path, typer.Argument(metavar="RUN|EXPORT", help="A run folder, or an exported model.")],
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Prepared data set: for an export, or in place of the run's own.")
    ] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which of its images.")] = "test",
    iw: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="The importance-weighted bound too, with K samples.")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processes on this machine; changes no figure.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, metavar="B", help="Images in a forward pass; changes no figure.")
    ] = None,
    draws: Annotated[
        int | None, typer.Option(min=1, max=2**32, metavar="D", help="Draws of each image; by default as configured.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of noise and binarisations.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Go on where figures could be misunderstood: each is marked.")
    ] = False,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write the figures there too; -: in place of the table."),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(metavar="ONNX", help="Samples against the images, in this network's features: docs/quality.md."),
    ] = None,
    features_sha256: Annotated[str | None, typer.Option(metavar="HEX", help="With --features: of that file.")] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="With --features: by default as many as images.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="With --features: of the samples; 1 by default.")
    ] = None,
) -> None:
    """Figures of a finished run's EMA weights, or of an exported model, with standard errors: docs/evaluate.md."""
    launched = "WORLD_SIZE" in os.environ
    with bad_input(found_by_all=True):
        if launched and ranks not in (None, RANKS):
            raise ValueError(f"--ranks {ranks}, but a launcher has started {RANKS} (WORLD_SIZE): leave --ranks out")
        if features is None and (features_sha256 or samples or temperature is not None):
            raise ValueError("--features-sha256, --samples and --temperature go with --features FILE: docs/quality.md")
        if features is not None and features_sha256 is None:
            raise ValueError(
                f"--features {features} needs --features-sha256: what `sha256sum` prints for the file as it was made"
            )
    if ranks and ranks > 1 and not launched:
        from attvae.engine.local_ranks import run_on_local_ranks

        raise typer.Exit(run_on_local_ranks([sys.executable, "-m", "attvae.cli", *sys.argv[1:]], ranks))
    from attvae.engine.environment_defaults import set_environment_defaults
    from attvae.engine.launcher import follow_launcher
    from attvae.engine.rendezvous import FailedOnAnotherRankError, is_lost_connection, join, leave
    from attvae.evaluate import Asked, Features, check_report, write_report
    from attvae.evaluate import evaluate as run
    from attvae.show import show_evaluation

    follow_launcher(lambda: os._exit(1))
    try:
        with bad_input(found_by_all=False):
            set_environment_defaults(trained)
            world = join()
            world.from_first(lambda: check_report(json_file))
            of = None
            if features is not None and features_sha256 is not None:
                of = Features(features, features_sha256, samples, 1.0 if temperature is None else temperature)
            report = run(trained, Asked(split, data, iw, batch, draws, seed, force, of), world)
            if RANK == 0 and json_file:
                write_report(json_file, report)
    except FailedOnAnotherRankError as error:
        end_silently(2 if error.bad_input else 1)
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        print(f"attvae (rank {RANK}): another rank is gone, and says or shows why", file=sys.stderr, flush=True)
        raise typer.Exit(1) from None
    finally:
        leave()
    if RANK == 0 and json_file != "-":
        show_evaluation(report)
