"""How a file or a folder comes to stand where a user wants it: whole, or not at all."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = ".attvae-"
"""Of the hidden folder that a killed process leaves."""


@contextmanager
def all_or_nothing(path: Path) -> Iterator[Path]:
    """The place to write what is to stand at `path`: it is moved there when the block ends without an error.

    It lies in a new folder beside `path`, so that nothing that was there before is touched.

    Raises:
        OSError: nothing can be written there.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=path.parent) as folder:
        made = Path(folder) / path.name
        yield made
        made.replace(path)
