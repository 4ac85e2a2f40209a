"""The `attvae` command. Heavy imports stay inside the commands."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import attvae
from attvae.closed_terminal import survive_closed_terminal
from attvae.engine import launcher as _launcher  # noqa: F401 - notes at once who started this process

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Deep attentive hierarchical VAEs: train, evaluate.",
)

RANK = int(os.environ.get("RANK", "0"))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", str(RANK)))
RANKS = int(os.environ.get("WORLD_SIZE", "1"))
SILENT_S = 3.0
"""A rank that leaves a message to another waits before it exits: the first exit makes launchers end all ranks."""


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


@contextmanager
def _bad_input(*, found_by_all: bool) -> Iterator[None]:
    """Turns a ValueError into one message and exit code 2, an OSError (network, disk) into one and exit code 1.

    What all ranks find alike, the first one of each host says: another host may lack what this one has.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if LOCAL_RANK == 0 or not found_by_all:
            print(f"attvae{f' (rank {RANK})' if RANK else ''}: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(SILENT_S)
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from None


def _read(config_file: Path, overrides: list[str]) -> Any:
    """The configuration, or why it cannot be read: perhaps on this host alone, which the other ranks must hear."""
    from attvae.config import load

    try:
        return load(config_file, overrides)
    except ValueError as error:
        return error


@app.command()
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

    with _bad_input(found_by_all=True):
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
        with _bad_input(found_by_all=False):
            run(given, folder.path)
    except StopRequestedError:
        raise typer.Exit(STOPPED) from None
    except DivergedError as error:
        if RANK == 0:
            print(f"attvae: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(SILENT_S)
        raise typer.Exit(1) from None
    except FailedOnAnotherRankError as error:
        time.sleep(SILENT_S)
        raise typer.Exit(2 if error.bad_input else 1) from None
    if RANK == 0:
        show_run(folder)


@app.command()
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
    with _bad_input(found_by_all=True):
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
        with _bad_input(found_by_all=False):
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
        time.sleep(SILENT_S)
        raise typer.Exit(2 if error.bad_input else 1) from None
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        print(f"attvae (rank {RANK}): another rank is gone, and says or shows why", file=sys.stderr, flush=True)
        raise typer.Exit(1) from None
    finally:
        leave()
    if RANK == 0 and json_file != "-":
        show_evaluation(report)


@app.command()
def sweep(
    search_file: Annotated[
        Path, typer.Argument(metavar="SEARCH", help="A YAML file, such as configs/search/digits.yaml.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of that file, such as trials=20.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="RAY", help="Join this Ray cluster; by default one of its own, here.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep that --out holds.")] = False,
    out: Annotated[Path | None, typer.Option(help="Its folder; by default runs/search/ and SEARCH's stem.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show trials and cost, no more.")
    ] = False,
) -> None:
    """Search hyperparameters on Ray: every trial is a training run. Leaves trials.json, best.yaml and a page."""
    from attvae.search.config import load_search
    from attvae.search.show import show_sweep, show_sweep_plan
    from attvae.search.space import check

    folder = out or Path("runs/search") / search_file.stem
    with _bad_input(found_by_all=True):
        search = load_search(search_file, overrides or [])
        check(search, data_needed=not dry_run)
    if dry_run:
        show_sweep_plan(search)
        return
    from attvae.engine.stop import STOPPED, StopRequestedError
    from attvae.search.standings import SweepFailedError
    from attvae.search.tune import sweep as run

    try:
        with _bad_input(found_by_all=True):
            run(search, folder, address, resume)
    except StopRequestedError as request:
        print(f"attvae: {request}: the same command with --resume goes on", file=sys.stderr, flush=True)
        raise typer.Exit(STOPPED) from None
    except SweepFailedError as error:
        print(f"attvae: {error}", file=sys.stderr, flush=True)
        raise typer.Exit(1) from None
    show_sweep(search, folder)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Run folders, or MLflow run ids.")],
    out: Annotated[Path | None, typer.Option(help="Write a page too, such as compare.html.")] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(help="MLflow's store, for run ids; by default MLFLOW_TRACKING_URI, or the runs' own.")
    ] = None,
) -> None:
    """Runs side by side: what differs, figures at equal samples seen and at equal time; curves and pictures."""
    from attvae.compare.page import page
    from attvae.compare.runs import read_runs
    from attvae.compare.terminal import show_comparison
    from attvae.pages.document import write_page

    with _bad_input(found_by_all=True):
        found = read_runs(runs, tracking_uri)
        show_comparison(found)
        if out:
            write_page(page(found), out)
            print(f"page: {out}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder; the run may still be going.")],
    out: Annotated[Path | None, typer.Option(help="The page to write; by default report.html in RUN.")] = None,
) -> None:
    """One page about a run, for any browser: figures, curves, pictures, attention, how to get it again."""
    from attvae.report.make import report as make

    with _bad_input(found_by_all=True):
        print(make(run, out))


bench = typer.Typer(no_args_is_help=True, help="Measure parts of attvae: JSON on stdout.")
app.add_typer(bench, name="bench")


@bench.command("data")
def bench_data(
    case: Annotated[
        list[str] | None, typer.Option(help="raw32, raw64, png32 or jpg256to64; repeatable. By default all.")
    ] = None,
    images: Annotated[int, typer.Option(help="Number of test images, made from two photographs.")] = 2**18,
    workers: Annotated[
        list[int] | None, typer.Option(help="Worker processes; repeatable, the best counts. By default 0, 1 and 2.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Epochs of each measurement.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Images of a batch.")] = 128,
    keep: Annotated[
        Path | None, typer.Option(help="Make the images here, leave them, use those that are here (20 GB).")
    ] = None,
) -> None:
    """Loader throughput: attvae's, webdataset's own pipeline, a folder of image files under torch's DataLoader."""
    import json

    from attvae.bench.data import measure_loaders

    with _bad_input(found_by_all=True):
        found = measure_loaders(case, images, workers or [0, 1, 2], repeats, batch_size, keep)
    print(json.dumps(found, indent=1))


@bench.command("scaling")
def bench_scaling(
    config_file: Annotated[
        Path, typer.Option("--config", help="Model, and what else a run is made of; the images are random.")
    ] = Path("configs/photos32.yaml"),
    engine: Annotated[str, typer.Option(help="zero or plain.")] = "zero",
    stage: Annotated[int, typer.Option(help="ZeRO stage.")] = 1,
    batch: Annotated[int, typer.Option(help="Images per rank and update.")] = 32,
    steps: Annotated[int, typer.Option(help="Updates of each measurement.")] = 5,
    repeats: Annotated[int, typer.Option(help="Measurements of each kind.")] = 9,
) -> None:
    """Training throughput on the CPU: two ranks on two cores against one rank on one core."""
    import json

    from attvae.bench.scaling import measure_scaling
    from attvae.config import load

    with _bad_input(found_by_all=True):
        cfg = load(config_file, [f"engine.name={engine}", f"engine.stage={stage}"])
        found = measure_scaling(cfg, batch, steps, repeats)
    print(json.dumps({"config": str(config_file), **found}, indent=1))


@bench.command("optimizer")
def bench_optimizer(
    config_file: Annotated[Path, typer.Option("--config", help="The model whose tensors are updated.")] = Path(
        "configs/paper/cifar10_attvae16.yaml"
    ),
    repeats: Annotated[int, typer.Option(help="Updates by each optimizer.")] = 15,
    as_json: Annotated[bool, typer.Option("--json", help="A document in place of the table.")] = False,
) -> None:
    """An update with clipping and average on the CPU: torch's Adamax and ours."""
    import json

    from attvae.bench.optimizer import measure_optimizers, table
    from attvae.config import load

    with _bad_input(found_by_all=True):
        found = {"config": str(config_file), **measure_optimizers(load(config_file, []), repeats)}
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        from rich.console import Console

        Console(width=140).print(table(found))


@bench.command("attention")
def bench_attention(
    layers: Annotated[list[int] | None, typer.Option(help="Heights of the stacks; by default 16, 32 and 64.")] = None,
    repeats: Annotated[int, typer.Option(help="Measurements of each kind.")] = 7,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Slices of channels-last maps, as the model has them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A document in place of the table.")] = False,
) -> None:
    """Depth-wise attention of a whole stack of layers on the CPU: as published, and ours."""
    import json

    from attvae.bench.attention import measure_attention, table

    with _bad_input(found_by_all=True):
        found = measure_attention(layers or [16, 32, 64], repeats, channels_last=channels_last)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        from rich.console import Console

        Console(width=160).print(table(found))


@bench.command("step")
def bench_step(
    batch: Annotated[int, typer.Option(help="Images of a step.")] = 16,
    repeats: Annotated[int, typer.Option(help="Steps of each contender.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="A document in place of the table.")] = False,
) -> None:
    """Forward and backward pass of a 5-million-parameter model on one thread, its parts on and off, NVAE's cells."""
    import json

    from attvae.bench.step import measure_step, table

    with _bad_input(found_by_all=True):
        found = measure_step(batch, repeats)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        from rich.console import Console

        Console(width=160).print(table(found))


@bench.command("sampling")
def bench_sampling(
    layers: Annotated[list[int] | None, typer.Option(help="Latent layers; by default 8, 16 and 32.")] = None,
    images: Annotated[int, typer.Option(help="Images of a forward pass.")] = 64,
    repeats: Annotated[int, typer.Option(help="Measurements of each kind.")] = 9,
    as_json: Annotated[bool, typer.Option("--json", help="A document in place of the table.")] = False,
) -> None:
    """Sampling on the CPU: with contexts kept, and without."""
    import json

    from attvae.bench.sampling import measure_sampling, table

    with _bad_input(found_by_all=True):
        found = measure_sampling(layers or [8, 16, 32], images, repeats)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        from rich.console import Console

        Console(width=160).print(table(found))


@app.command()
def sync(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
) -> None:
    """Send to MLflow what run folders hold and it lacks: after an outage, or from a machine with a network."""
    from attvae.sync import check_run_id
    from attvae.sync import sync as send

    with _bad_input(found_by_all=True):
        check_run_id(runs)
    codes = [0]
    for run in runs:
        try:
            print(send(run), flush=True)
        except (ValueError, OSError) as error:
            print(f"attvae: {error}", file=sys.stderr, flush=True)
            codes.append(2 if isinstance(error, ValueError) else 1)
    raise typer.Exit(max(codes))


@app.command("find-batch")
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

    with _bad_input(found_by_all=True):
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


@app.command("profile")
def profile_run(
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
    from attvae.profile import profile, show_profile
    from attvae.train import plan

    with _bad_input(found_by_all=True):
        cfg = load(config_file, overrides or [])
        planned = plan(cfg, 1, data_needed=False)
        spec = planned.manifest.spec if planned.manifest else cfg.data.spec
        assert spec is not None
        folder = out or Path("runs", "profile", config_file.stem)
        found = profile(cfg, spec, batch or planned.batch.micro_batch, steps, folder)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        show_profile(found)


@app.command()
def doctor(
    config_file: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="The configuration of the run that is meant.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as data.path=data/digits.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Its run folder; by default runs/ and CONFIG's stem.")] = None,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="On all ranks that a launcher has started: do they fit together?")
    ] = False,
    write_deepspeed_env: Annotated[
        bool, typer.Option("--write-deepspeed-env", help="Write .deepspeed_env for the deepspeed command, no more.")
    ] = False,
    local_rank: Annotated[int, typer.Option("--local_rank", hidden=True)] = 0,  # the deepspeed launcher passes it
) -> None:
    """Find what would keep a run from working, before it is started."""
    from attvae.doctor import deepspeed_env, report

    if write_deepspeed_env:
        with _bad_input(found_by_all=True):
            report.show_written(deepspeed_env.write(os.environ))
        return
    from attvae.config import load
    from attvae.doctor.examine import examine, examine_together
    from attvae.engine.rendezvous import FailedOnAnotherRankError, leave

    folder = out or Path("runs") / (config_file.stem if config_file else "")
    try:
        with _bad_input(found_by_all=not distributed):
            if distributed:
                checks = examine_together(config_file, overrides or [], folder)
            else:
                checks = examine(load(config_file, overrides or []) if config_file else None, folder)
    except FailedOnAnotherRankError as error:
        time.sleep(SILENT_S)
        raise typer.Exit(2 if error.bad_input else 1) from None
    finally:
        leave()
    if RANK == 0:
        report.show(checks)
    if any(check.verdict == "problem" for check in checks):
        if RANK:
            time.sleep(SILENT_S)
        raise typer.Exit(1)


@app.command()
def compress(
    model: Annotated[Path, typer.Argument(metavar="RUN|EXPORT", help="A finished run, or an exported model.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGES]...", help="Image files, or folders of nothing else.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="A prepared data set, near or far, in place of IMAGES.")
    ] = None,
    split: Annotated[str, typer.Option(help="With --data: which of its images.")] = "test",
    draws: Annotated[int, typer.Option(min=1, help="With --data, if it is binary: draws of each image.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Images in a forward pass, once there are bits for so many.")] = 64,
    force: Annotated[
        bool, typer.Option("--force", help="Go on where figures could be misunderstood: each is marked.")
    ] = False,
    json_file: Annotated[
        str | None,
        typer.Option("--json", metavar="FILE", help="Write the figures there too; -: in place of the table."),
    ] = None,
) -> None:
    """Code images without loss by a trained model, and compare the bits with its NELBO: docs/compress.md."""
    with _bad_input(found_by_all=True):
        from attvae.compression.command import compress as run
        from attvae.compression.command import show_compressed
        from attvae.evaluate import check_report, write_report

        check_report(json_file)
        found = run(model, images or [], out, data=data, split=split, draws=draws, batch=batch, force=force)
        if json_file:
            write_report(json_file, {"model": str(model), "file": str(out), **found.report()})
        if json_file != "-":
            show_compressed(found, out)


@app.command()
def decompress(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `attvae compress` has written.")],
    model: Annotated[Path, typer.Option(metavar="RUN|EXPORT", help="The model that it was compressed with.")],
    out: Annotated[Path, typer.Option(help="The folder to write, of PNG files.")],
) -> None:
    """Get the images of a compressed file back, every pixel as it was, or an error."""
    with _bad_input(found_by_all=True):
        from attvae.compression.command import decompress as run

        found = run(file, model, out)
    print(f"{out}: {found.images:,} images, their checksum fits; {found.images_per_s:,.1f} images/s")


@app.command()
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

    with _bad_input(found_by_all=True):
        config = export_run(run, out, parse_formats(programs), force=force)
    seen = f"{config.samples_seen:,} samples seen; attvae.load, attvae sample and attvae evaluate take this folder"
    print(f"{out}: {seen}")


@app.command()
def sample(
    model: Annotated[Path, typer.Argument(metavar="EXPORT|RUN", help="An exported model, or a finished run.")],
    out: Annotated[Path, typer.Option(help="x.png: a grid; x.npy: an array; no suffix: a folder of PNGs.")],
    n: Annotated[int, typer.Option("--n", min=1, help="Number of images.")] = 64,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Factor of the priors' standard deviations; below 1: tamer images.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the noise.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time: changes memory and speed alone.")] = 64,
    force: Annotated[bool, typer.Option("--force", help="Take an unfinished run's newest checkpoint too.")] = False,
) -> None:
    """Draw images from a model, as many as wanted. Image i depends on the model, seed and temperature alone."""
    from attvae.sample import sample as draw

    with _bad_input(found_by_all=True):
        draw(model, out, n=n, temperature=temperature, seed=seed, batch=batch, force=force)
    print(f"{out}: {n:,} images at temperature {temperature:g}")


@app.command("import-official")
def import_official(
    weights: Annotated[Path, typer.Argument(metavar="FINAL_MODEL.H5", help="Weights that the authors' code saved.")],
    command: Annotated[Path, typer.Option(help="The command line that lies beside them, such as eval_command.sh.")],
    out: Annotated[Path, typer.Option(help="Export folder to write.")],
    data_spec: Annotated[
        Path | None,
        typer.Option(
            help="JSON of height, width, channels, num_bits, binary, pad: in place of what --dataset implies."
        ),
    ] = None,
) -> None:
    """Turn weights of the authors' TensorFlow code into an export folder."""
    from attvae.export import ExportConfig, check_absent, write
    from attvae.model.official import count_parameters
    from attvae.model.official_command import parse_command, read_data_spec
    from attvae.model.official_h5 import read_h5
    from attvae.model.vae import DeepVAE
    from attvae.model_card import model_card

    with _bad_input(found_by_all=True):
        check_absent(out)
        try:
            text = command.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read the command line {command}: {error}") from error
        config, spec = parse_command(text, read_data_spec(data_spec) if data_spec else None)
        model = DeepVAE(config, spec)
        read_h5(weights, model)
        stated = ExportConfig(model=config, spec=spec, weights="parameters")  # the authors do not average
        card = model_card(stated, model, origin="of the authors' code, read by attvae import-official")
        write(out, model, stated, card)
    print(f"{out}: {count_parameters(model):,} parameters as the authors count; attvae.load takes this folder")


def run() -> None:
    """The command, whose output may be lost without harm."""
    survive_closed_terminal()
    app()


if __name__ == "__main__":
    run()
