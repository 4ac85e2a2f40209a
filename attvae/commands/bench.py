"""`attvae bench` and its commands."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from attvae.commands.outcome import bad_input

bench = typer.Typer(no_args_is_help=True, help="Measure parts of attvae: JSON on stdout.")


def _show(found: dict[str, Any], table: Callable[[dict[str, Any]], Any] | None = None, width: int = 160) -> None:
    """What a benchmark has found, as a JSON document or as a table."""
    if table is None:
        print(json.dumps(found, indent=1))
    else:
        from rich.console import Console

        Console(width=width).print(table(found))


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
    from attvae.bench.data import measure_loaders

    with bad_input(found_by_all=True):
        found = measure_loaders(case, images, workers or [0, 1, 2], repeats, batch_size, keep)
    _show(found)


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
    from attvae.bench.scaling import measure_scaling
    from attvae.config import load

    with bad_input(found_by_all=True):
        cfg = load(config_file, [f"engine.name={engine}", f"engine.stage={stage}"])
        found = measure_scaling(cfg, batch, steps, repeats)
    _show({"config": str(config_file), **found})


@bench.command("optimizer")
def bench_optimizer(
    config_file: Annotated[Path, typer.Option("--config", help="The model whose tensors are updated.")] = Path(
        "configs/paper/cifar10_attvae16.yaml"
    ),
    repeats: Annotated[int, typer.Option(help="Updates by each optimizer.")] = 15,
    as_json: Annotated[bool, typer.Option("--json", help="A document in place of the table.")] = False,
) -> None:
    """An update with clipping and average on the CPU: torch's Adamax and ours."""
    from attvae.bench.optimizer import measure_optimizers, table
    from attvae.config import load

    with bad_input(found_by_all=True):
        found = {"config": str(config_file), **measure_optimizers(load(config_file, []), repeats)}
    _show(found, None if as_json else table, width=140)


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
    from attvae.bench.attention import measure_attention, table

    with bad_input(found_by_all=True):
        found = measure_attention(layers or [16, 32, 64], repeats, channels_last=channels_last)
    _show(found, None if as_json else table)


@bench.command("step")
def bench_step(
    batch: Annotated[int, typer.Option(help="Images of a step.")] = 16,
    repeats: Annotated[int, typer.Option(help="Steps of each contender.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="A document in place of the table.")] = False,
) -> None:
    """Forward and backward pass of a 5-million-parameter model on one thread, its parts on and off, NVAE's cells."""
    from attvae.bench.step import measure_step, table

    with bad_input(found_by_all=True):
        found = measure_step(batch, repeats)
    _show(found, None if as_json else table)


@bench.command("sampling")
def bench_sampling(
    layers: Annotated[list[int] | None, typer.Option(help="Latent layers; by default 8, 16 and 32.")] = None,
    images: Annotated[int, typer.Option(help="Images of a forward pass.")] = 64,
    repeats: Annotated[int, typer.Option(help="Measurements of each kind.")] = 9,
    as_json: Annotated[bool, typer.Option("--json", help="A document in place of the table.")] = False,
) -> None:
    """Sampling on the CPU: with contexts kept, and without."""
    from attvae.bench.sampling import measure_sampling, table

    with bad_input(found_by_all=True):
        found = measure_sampling(layers or [8, 16, 32], images, repeats)
    _show(found, None if as_json else table)
