"""What must hold on every rank's host before anything is trained: the same code and configuration, one run folder."""

import os
import secrets
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import xxhash

import attvae
from attvae.config import RunConfig, flatten
from attvae.engine.rendezvous import World

PACKAGES = ("torch", "deepspeed", "webdataset", "numpy")
"""Other versions of these may compute something else, or wait for each other in other collectives."""

SEEN_WITHIN_S = 60.0
"""An NFS client may remember for so long that a name was not there."""

NAMED = 4
"""Differences, and ranks, that a message names; it counts the others."""


def check_same_everywhere(world: World, found: Mapping[str, str]) -> None:
    """Refuses ranks that would not train one model. Collective.

    Args:
        found: `facts`, or some of them.

    Raises:
        ValueError: on rank 0: they differ; names hosts, ranks, and what.
        FailedOnAnotherRankError: on the others, in place of it.
    """
    complaints = ranks_that_differ(world, found)

    def refuse() -> None:
        if complaints:
            raise ValueError(
                f"the ranks do not run the same: {some_of(complaints)}: "
                "install the same, prepare the same data, and give the same command on all hosts"
            )

    world.from_first(refuse)


def check_shared(world: World, folder: Path) -> None:
    """Refuses a run folder that is not one folder for all ranks. It exists on rank 0; nothing stays in it. Collective.

    Raises:
        ValueError: on rank 0: another rank does not see it, or cannot write into it; names hosts and ranks.
        FailedOnAnotherRankError: on the others, in place of it.
    """
    complaints = ranks_without(world, folder)

    def refuse() -> None:
        if complaints:
            raise ValueError(
                f"the run folder is not shared: {some_of(complaints)}: "
                "choose a folder with --out that all hosts share and may write"
            )

    world.from_first(refuse)


def facts(cfg: RunConfig | None, data_fingerprint: str | None) -> dict[str, str]:
    """What must be the same on all ranks, by name."""
    found = {"attvae": f"{attvae.__version__} with sources {_hash_of_sources()}"}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if data_fingerprint is not None:
        found["data with fingerprint"] = data_fingerprint
    if cfg is not None:
        found |= {key: repr(value) for key, value in flatten(cfg.model_dump(mode="json")).items()}
    return found


def ranks_that_differ(world: World, here: Mapping[str, str]) -> list[str]:
    """Which ranks have other facts than rank 0, and which facts: a sentence for each such rank. Collective."""
    there, first_host = world.from_first(lambda: (dict(here), socket.gethostname()))
    unlike = [
        f"{key} {here.get(key, 'missing')}, on rank 0 ({first_host}) {there.get(key, 'missing')}"
        for key in [*there, *(here.keys() - there.keys())]
        if here.get(key) != there.get(key)
    ]
    complaint = f"{whoami(world)} has {some_of(unlike)}" if unlike else None
    return [each for each in world.gather(complaint) if each]


def ranks_without(world: World, folder: Path) -> list[str]:
    """Which ranks cannot write where rank 0 writes, and why: a sentence for each. Collective.

    Args:
        folder: exists on rank 0. Nothing stays in it.

    Raises:
        OSError: on rank 0, which cannot write there itself; FailedOnAnotherRankError on the others.
    """

    def begin() -> tuple[str, str]:
        name = f".shared-{secrets.token_hex(8)}"
        (folder / name).mkdir()
        return name, f"{socket.gethostname()} writes into {folder}"

    name, written = world.from_first(begin)
    place = folder / name
    complaint = None
    try:
        if not _appears(place):
            complaint = f"{whoami(world)} does not see in {folder} what rank 0 on {written}"
        else:
            try:
                (place / f"rank-{world.rank}").write_text("can be written")
            except OSError as error:
                complaint = f"{whoami(world)} cannot write into {folder} ({error.strerror})"
        return [each for each in world.gather(complaint) if each]
    finally:
        if world.rank == 0:
            shutil.rmtree(place, ignore_errors=True)


def whoami(world: World) -> str:
    """This rank, for messages."""
    return f"rank {world.rank} on {socket.gethostname()}"


def some_of(sentences: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = [f"and {len(sentences) - NAMED} more"] if len(sentences) > NAMED else []
    return "; ".join([*sentences[:NAMED], *more])


def _appears(place: Path) -> bool:
    deadline = time.monotonic() + SEEN_WITHIN_S
    while not place.is_dir():
        if time.monotonic() > deadline:
            return False
        with suppress(OSError):
            os.listdir(place.parent)  # makes some network file systems look again
        time.sleep(0.1)
    return True


def _hash_of_sources() -> str:
    """Two checkouts may bear the same version."""
    digest, package = xxhash.xxh3_64(), Path(__file__).parent
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
