"""`attvae compress` and `attvae decompress`."""

from pathlib import Path
from typing import Annotated

import typer

from attvae.commands.outcome import bad_input


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
    with bad_input(found_by_all=True):
        from attvae.compression.command import compress as run
        from attvae.compression.command import show_compressed
        from attvae.evaluate import check_report, write_report

        check_report(json_file)
        found = run(model, images or [], out, data=data, split=split, draws=draws, batch=batch, force=force)
        if json_file:
            write_report(json_file, {"model": str(model), "file": str(out), **found.report()})
        if json_file != "-":
            show_compressed(found, out)


def decompress(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `attvae compress` has written.")],
    model: Annotated[Path, typer.Option(metavar="RUN|EXPORT", help="The model that it was compressed with.")],
    out: Annotated[Path, typer.Option(help="The folder to write, of PNG files.")],
) -> None:
    """Get the images of a compressed file back, every pixel as it was, or an error."""
    with bad_input(found_by_all=True):
        from attvae.compression.command import decompress as run

        found = run(file, model, out)
    print(f"{out}: {found.images:,} images, their checksum fits; {found.images_per_s:,.1f} images/s")
