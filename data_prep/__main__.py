"""python -m data_prep NAME [--out FOLDER]: webdataset shards and a manifest from the original data."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from data_prep.writer import prepare

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

Out = Annotated[Path, typer.Option(help="Folder for the shards and manifest.json.")]


@app.command()
def digits(out: Out = Path("data/digits")) -> None:
    """scikit-learn's 1,797 handwritten digits: 8×8, grey levels 0..16, binarised at each draw."""
    from data_prep.digits import dataset

    prepare(dataset(), out)


@app.command()
def photos(out: Out = Path("data/photos32")) -> None:
    """32×32 RGB patches of scikit-learn's two sample photographs; the splits share no pixel."""
    from data_prep.photos import dataset

    prepare(dataset(), out)


def main() -> None:
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
