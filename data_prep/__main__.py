"""python -m data_prep NAME --src SOURCE [--out FOLDER]: webdataset shards and a manifest from the original data."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from attvae.data.manifest import Format, Split
from data_prep.dataset import Dataset
from data_prep.writer import prepare, prepare_unpacked

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the shards and manifest.json.")]
Src = Annotated[Path, typer.Option(resolve_path=True, help="The data as they are distributed.")]
Out = Annotated[
    Path | None, typer.Option(help="Folder for the shards and manifest.json; data/ and the data set's name by default.")
]
UnpackedOut = Annotated[Path, typer.Option(help="Folder for the shards and manifest.json.")]
Size = Annotated[int | None, typer.Option(min=1, help="Height and width to scale to; by default as they are.")]
Stored = Annotated[Format, typer.Option(help="How images are stored.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that write shards.")]
Ray = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Write on a Ray cluster instead: local, auto, or HOST:PORT.")
]


@app.command()
def digits(out: Out = None, workers: Workers = 1, ray: Ray = None) -> None:
    """scikit-learn's 1,797 handwritten digits: 8×8, grey levels 0..16, binarised at each draw."""
    from data_prep.digits import dataset

    _prepare(dataset(), out, workers, ray)


@app.command()
def photos(
    out: Annotated[
        Path | None, typer.Option(help="Folder for the shards and manifest.json; data/photosSIZE by default.")
    ] = None,
    size: Annotated[int, typer.Option(min=1, help="Height and width of a patch.")] = 32,
    workers: Workers = 1,
    ray: Ray = None,
) -> None:
    """Square RGB patches of scikit-learn's two sample photographs; the splits share no pixel."""
    from data_prep.photos import dataset

    _prepare(dataset(size), out or Path(f"data/photos{size}"), workers, ray)


@app.command()
def cifar10(
    src: Src, out: Out = None, size: Size = None, format: Stored = "raw", workers: Workers = 1, ray: Ray = None
) -> None:
    """CIFAR-10, the binary or the python archive (no pickled code runs), packed or unpacked."""
    from data_prep.cifar10 import dataset

    _prepare(dataset(src, size, format), out, workers, ray)


@app.command()
def mnist(
    src: Src, out: Out = None, size: Size = None, format: Stored = "raw", workers: Workers = 1, ray: Ray = None
) -> None:
    """MNIST, the folder of the idx files, gzipped or not; binarised at each draw."""
    from data_prep.mnist import dataset

    _prepare(dataset(src, size, format), out, workers, ray)


@app.command()
def omniglot(src: Src, out: Out = None, format: Stored = "raw", workers: Workers = 1, ray: Ray = None) -> None:
    """Omniglot, Burda's chardata.mat with its own split; binarised at each draw."""
    from data_prep.omniglot import dataset

    _prepare(dataset(src, format), out, workers, ray)


@app.command()
def arrays(
    src: Src, out: UnpackedOut, size: Size = None, format: Stored = "raw", workers: Workers = 1, ray: Ray = None
) -> None:
    """Arrays of images, .npy or .npz, with or without splits and labels."""
    from data_prep.arrays import dataset

    prepare_unpacked(lambda work: dataset(src, size, format, work), out, workers, ray)


@app.command()
def imagenet_npz(src: Src, out: UnpackedOut, format: Stored = "raw", workers: Workers = 1, ray: Ray = None) -> None:
    """Downsampled ImageNet 32 or 64, the batches of image-net.org (.npz or pickled; no pickled code runs)."""
    from data_prep.imagenet_npz import dataset

    prepare_unpacked(lambda work: dataset(src, format, work), out, workers, ray)


@app.command()
def imagenet_png(src: Src, out: Out = None, format: Stored = "raw", workers: Workers = 1, ray: Ray = None) -> None:
    """Downsampled ImageNet 32 or 64, the older PNG files of van den Oord et al."""
    from data_prep.imagenet_png import dataset

    _prepare(dataset(src, format), out, workers, ray)


@app.command()
def imagenet(
    src: Src,
    out: Out = None,
    size: Size = None,
    format: Annotated[
        Format | None, typer.Option(help="How images are stored; by default raw, and jpg without --size.")
    ] = None,
    workers: Workers = 1,
    ray: Ray = None,
) -> None:
    """ILSVRC2012, the tars as distributed or class folders: resized to --size, or the original JPEGs."""
    from data_prep.imagenet import dataset

    _prepare(dataset(src, size, format or ("raw" if size else "jpg")), out, workers, ray)


@app.command()
def folder(
    src: Src,
    out: Out = None,
    size: Size = None,
    format: Stored = "raw",
    bits: Annotated[
        int | None, typer.Option(min=1, max=16, help="Bits of a value; needed for files of 16 bits.")
    ] = None,
    workers: Workers = 1,
    ray: Ray = None,
) -> None:
    """A folder of image files of one number of channels, labelled by their folders."""
    from data_prep.folder import dataset

    _prepare(dataset(src, size, format, bits), out, workers, ray)


@app.command()
def index(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of webdataset tars; they stay untouched.")],
    name: Annotated[str | None, typer.Option(help="Of the data set; by default the folder's.")] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Height and width to load at, for images of unequal sizes.")
    ] = None,
    train: Annotated[str | None, typer.Option(metavar="GLOB", help="Shards of train; by default train*.")] = None,
    val: Annotated[str | None, typer.Option(metavar="GLOB", help="Shards of val; by default val*.")] = None,
    test: Annotated[str | None, typer.Option(metavar="GLOB", help="Shards of test; by default test*.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read shards.")] = 1,
) -> None:
    """Write the manifest.json for webdataset tars that are there already."""
    from data_prep.index import index

    globs: dict[Split, str | None] = {"train": train, "val": val, "test": test}
    index(folder, name or folder.resolve().name, globs, size, workers)


@app.command()
def verify(
    folder: Folder, workers: Annotated[int, typer.Option(min=0, help="Processes that read shards.")] = 1
) -> None:
    """Recount, rehash and decode everything; exit code 1 and the names of what is wrong, 0 if nothing is."""
    from data_prep.verify import verify

    if not verify(folder, workers):
        raise typer.Exit(1)


@app.command()
def show(
    folder: Folder,
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("grid.png"),
    split: Annotated[Split, typer.Option(help="Whose images.")] = "train",
    images: Annotated[int, typer.Option(min=1, help="How many, evenly spread over the split.")] = 64,
) -> None:
    """Draw a grid of images to look at, with their labels."""
    from data_prep.show import show

    show(folder, out, split, images)


def _prepare(dataset: Dataset, out: Path | None, workers: int, ray: str | None) -> None:
    prepare(dataset, out or Path("data") / dataset.name, workers, ray)


def main() -> None:
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
