"""Arrays in .npy and .npz files, mapped into memory; nothing pickled is ever read."""

import shutil
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray

from data_prep.atomic import aside


def mapped(path: Path, name: str) -> Shaped[ndarray, "..."]:
    """The array in the .npy file at `path`, read where it is used.

    Args:
        name: of the file in messages.

    Raises:
        ValueError: it is no .npy file, cut short, or holds Python objects.
    """
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        raise ValueError(
            f"{name} cannot be read ({error}): expected an array of numbers as numpy.save writes it, "
            "all of it, and no Python objects"
        ) from None


def members(npz: Path) -> list[str]:
    """The names of the arrays in a .npz file.

    Raises:
        ValueError: it is none, or cut short.
    """
    try:
        with zipfile.ZipFile(npz) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{npz} is no .npz file, or cut short ({error}): get it again") from None


def unpack(npz: Path, member: str, unpacked: Path) -> None:
    """Copies an array of a .npz file to a .npy file, through a small buffer; one that is there already is kept.

    Raises:
        ValueError: there is no such array in it, or it is damaged.
        OSError: the disk is full.
    """
    try:
        with zipfile.ZipFile(npz) as archive:
            entry = archive.getinfo(f"{member}.npy")
            if unpacked.exists() and unpacked.stat().st_size == entry.file_size:
                return
            unpacked.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, aside(unpacked) as target:
                shutil.copyfileobj(source, target, 2**20)
    except KeyError:
        raise ValueError(f"{npz} has no array {member!r}: found {', '.join(members(npz)) or 'none'}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{member} in {npz} is damaged or cut short ({error}): get the file again") from None
