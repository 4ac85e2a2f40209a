"""`attvae doctor`: what would keep a run from working, found before it is started."""

import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from attvae.agreement import facts, some_of, whoami
from attvae.config import RunConfig, load
from attvae.data.manifest import Manifest
from attvae.doctor import deepspeed_env, machine, ranks, shards
from attvae.doctor.check import Check, examined
from attvae.engine.environment_defaults import set_environment_defaults
from attvae.engine.rendezvous import FailedOnAnotherRankError, join, rank_from_environment
from attvae.train import CHECKPOINT_BYTES, plan

PATIENCE_S = 120.0
"""How long ranks wait for each other: longer than a look at shards or folders takes."""


def examine(cfg: RunConfig | None, out: Path) -> list[Check]:
    """The checks of this process, without others.

    Args:
        cfg: of the run that is meant; None leaves out what depends on it.
        out: its run folder. Nothing is left there.

    Raises:
        ValueError: a launcher has started several of this process.
    """
    if (several := rank_from_environment()[1]) > 1:
        raise ValueError(f"a launcher has started {several} ranks (WORLD_SIZE): add --distributed")
    found, _ = _on_this_rank(cfg, out, 0, 1)
    return [*found, examined(".deepspeed_env", deepspeed_env.check), examined("master port", machine.master_port)]


def examine_together(config_file: Path | None, overrides: Sequence[str], out: Path) -> list[Check]:
    """The checks of all ranks and of what is between them, the same list on all of them. Collective.

    It reads the configuration itself: one that cannot be read on one host alone is a finding.

    Raises:
        ValueError: no rank can read the configuration, or a rank has not the device that it asks for; on one rank.
        FailedOnAnotherRankError: on the other ranks, in place of it.
        ConnectionError: the ranks did not find each other within PATIENCE_S, or one has gone.
    """
    try:
        return _together(config_file, overrides, out)
    except FailedOnAnotherRankError:
        raise
    except RuntimeError as error:  # all of torch's
        who = f"rank {rank_from_environment()[0]} on {socket.gethostname()}"
        raise ConnectionError(f"{who} has lost the other ranks: {error}") from error


def _together(config_file: Path | None, overrides: Sequence[str], out: Path) -> list[Check]:
    cfg, failure = None, None
    if config_file is not None:
        try:
            cfg = load(config_file, overrides)
        except ValueError as error:
            failure = str(error)
    set_environment_defaults(out)
    world = join(patience_s=PATIENCE_S, device=cfg.engine.device if cfg else "auto")
    failures = world.gather(f"{whoami(world)}: {failure}" if failure else None)
    if all(failures):
        world.from_first(partial(_refuse, failure))
    checks = [ranks.who_is_here(world)]
    if any(failures):
        checks.append(Check("configuration", "problem", some_of([each for each in failures if each])))
    checks.append(examined("shared folder", partial(ranks.shared_folder, world, out)))  # before anybody looks there
    found, manifest = _on_this_rank(cfg, out, world.rank, world.size)
    if world.rank == 0:
        found.append(examined(".deepspeed_env", deepspeed_env.check))
    checks += ranks.merged(world, found)
    fingerprint = manifest.fingerprint if manifest else None
    # What a rank could not read is a problem already, and no difference.
    read_by_all = all(each is not None for each in world.gather(fingerprint))
    comparable = facts(None if any(failures) else cfg, fingerprint if read_by_all else None)
    checks.append(ranks.sameness(world, comparable))
    checks.append(ranks.clocks(world))
    checks.append(ranks.all_reduce(world))
    return world.from_first(lambda: checks)


def _on_this_rank(cfg: RunConfig | None, out: Path, rank: int, world_size: int) -> tuple[list[Check], Manifest | None]:
    checks = [
        examined("versions", machine.versions),
        examined("devices", lambda: machine.devices(cfg.engine.device if cfg else "auto")),
        examined("apex", lambda: machine.apex(cfg)),
        examined("clock", lambda: machine.file_clock(out)),
    ]
    manifest, checkpoint_bytes = None, None
    if cfg is not None:
        cfg = shards.impatient(cfg)
        manifest, check = shards.manifest_of(cfg)
        checks.append(check)
        if manifest is not None and check.verdict != "problem":
            try:
                planned = plan(cfg, world_size)
            except ValueError as error:
                checks.append(Check("run", "problem", str(error)))
            else:
                checkpoint_bytes = planned.parameters * CHECKPOINT_BYTES
                checks += _of_the_data(planned.cfg, manifest, planned.batch.micro_batch, rank, world_size)
    checks.append(examined("run folder", lambda: machine.disk(out, checkpoint_bytes, cfg)))
    checks.append(examined("open files", lambda: machine.open_files(cfg, manifest, world_size)))
    return checks, manifest


def _of_the_data(cfg: RunConfig, manifest: Manifest, micro_batch: int, rank: int, world_size: int) -> list[Check]:
    return [
        examined("first batch", lambda: shards.first_batch(cfg, manifest, micro_batch, rank, world_size)),
        examined("shard cache", lambda: machine.cache(cfg.data, manifest)),
        examined("shared memory", lambda: machine.shared_memory(cfg.data, manifest, micro_batch)),
    ]


def _refuse(message: str | None) -> None:
    raise ValueError(message)
