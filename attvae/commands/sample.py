"""`attvae sample`."""

from pathlib import Path
from typing import Annotated

import typer

from attvae.commands.outcome import bad_input


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

    with bad_input(found_by_all=True):
        draw(model, out, n=n, temperature=temperature, seed=seed, batch=batch, force=force)
    print(f"{out}: {n:,} images at temperature {temperature:g}")
