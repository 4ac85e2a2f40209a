"""One run, top to bottom. The same command starts it, resumes it, or says that it is done."""

import shutil
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from attvae import checkpoint, config, export, seeding
from attvae.agreement import check_same_everywhere, check_shared, facts
from attvae.build_engine import build_engine
from attvae.checkpoint import Checkpoint
from attvae.config import RunConfig
from attvae.data.loader import open_manifest
from attvae.data.manifest import SPLITS, Manifest
from attvae.engine.batch import BatchPlan, divide
from attvae.engine.config import EngineConfig
from attvae.engine.deepspeed_config import deepspeed_config
from attvae.engine.environment_defaults import set_environment_defaults
from attvae.engine.launcher import follow_launcher
from attvae.engine.rendezvous import World, connect, is_known_to_all, kind_of_device, leave, meet
from attvae.engine.stop import LAUNCHER_GONE, StopRequest, StopRequestedError
from attvae.engine.watchdog import Watchdog
from attvae.engine.zero import import_deepspeed
from attvae.evaluate import final_figures
from attvae.export import ExportConfig, TrainedOn
from attvae.loop import Loop, newest_checkpoint
from attvae.model.official import count_parameters
from attvae.model.vae import DeepVAE
from attvae.model_card import model_card
from attvae.report.make import report_at_the_end
from attvae.report.subject import dataset_of
from attvae.run_folder import RunFolder, write_json
from attvae.seeding import Purpose
from attvae.tracking.console import Console
from attvae.tracking.fan_out import FanOut
from attvae.tracking.jsonl import Journal
from attvae.tracking.protocol import Status, Tracker
from attvae.tracking.shipper import Shipper

CHECKPOINT_BYTES = 16
"""Of a parameter in a checkpoint: its value, two moments and its average, in fp32."""


class Plan(NamedTuple):
    """A run that has passed every check of a rank by itself."""

    cfg: RunConfig
    manifest: Manifest | None
    """None: the data are not there yet."""
    batch: BatchPlan
    parameters: int
    published_count: int
    """Parameters as the paper's authors count them."""


def plan(cfg: RunConfig, ranks: int, *, data_needed: bool = True, device: Literal["cuda", "cpu"] | None = None) -> Plan:
    """Checks what a rank can check by itself.

    Args:
        device: of the run, where that is not planned for this machine.

    Raises:
        ValueError: the data are missing or others than stated, the model does not fit them, the ranks do not divide
            the batch, or the precision or a kernel is not for this device.
    """
    batch = divide(cfg.train.global_batch, ranks, cfg.engine.micro_batch)
    if (device or kind_of_device(cfg.engine.device)) == "cpu":
        why = "there is none" if cfg.engine.device == "auto" else "engine.device=cpu"
        if cfg.engine.precision == "fp16":
            raise ValueError(f"engine.precision=fp16 needs a GPU and {why}: use autocast, bf16 or fp32")
        if cfg.engine.depth_attention == "triton":
            raise ValueError(f"engine.depth_attention=triton needs a GPU and {why}: use auto or torch")
        if cfg.engine.compile:
            raise ValueError(
                f"engine.compile needs a GPU and {why}: on a CPU, torch.compile gives wrong gradients of this "
                "model (docs/engine.md); use engine.compile=false"
            )
    manifest = open_manifest(cfg.data) if data_needed or cfg.data.spec is None or Path(cfg.data.path).exists() else None
    if manifest and cfg.data.spec not in (None, manifest.spec):
        raise ValueError(f"{cfg.data.path} holds {manifest.spec!r}, but the configuration is for {cfg.data.spec!r}")
    spec = manifest.spec if manifest else cfg.data.spec
    assert spec is not None
    with torch.device("meta"):
        model = DeepVAE(cfg.model, spec)
    return Plan(cfg, manifest, batch, sum(p.numel() for p in model.parameters()), count_parameters(model))


def train(cfg: RunConfig | ValueError, out: Path) -> None:
    """Trains, evaluates, and leaves the run folder `out`; nothing where that holds the finished run. Collective.

    Args:
        cfg: or why it cannot be read: this rank takes part all the same, so that the others need not wait for it.

    Raises:
        ValueError: bad input; the message names the thing and the remedy.
        ConnectionError: remote data stayed silent, or the ranks did not meet.
        NotSavedError: a checkpoint could not be written, and checkpoint.on_failure=stop.
        FailedOnAnotherRankError: in place of these, where another rank says it.
        StopRequestedError: a signal came, or the launcher went; what was trained is saved.
        DivergedError: the training left the useful numbers.
    """
    stop = StopRequest()
    with stop.listening():
        follow_launcher(lambda: stop.request(LAUNCHER_GONE))
        engine, retry_s = (EngineConfig(), 0.0) if isinstance(cfg, ValueError) else (cfg.engine, cfg.data.retry_s)
        hang_s = engine.hang_s + retry_s  # a rank may wait for its shard
        set_environment_defaults(out)
        world = meet(stop, hang_s + 60, engine.device)
        watchdog = Watchdog(world, hang_s, out / "stacks")
        try:
            connect(world, hang_s + 60)
            _train(cfg, RunFolder(out), world, watchdog)
            world.barrier()
        except Exception as error:
            if is_known_to_all(error) or world.size == 1:
                watchdog.stop()
                leave()
            else:  # the process group is not left: that could wait for ranks that are stuck
                watchdog.report(error)
            raise
        watchdog.stop()
        leave()


def _train(given: RunConfig | ValueError, folder: RunFolder, world: World, watchdog: Watchdog) -> None:
    def readable() -> RunConfig:
        if isinstance(given, ValueError):
            raise given
        return given

    cfg = world.all_or_none(readable)
    check_same_everywhere(world, facts(cfg, None))
    if world.from_first(lambda: folder.is_finished(cfg)):
        return
    planned = world.all_or_none(lambda: plan(cfg, world.size))
    _, manifest, batch, parameters, _ = planned
    assert manifest is not None, "only a dry run does without data"
    check_same_everywhere(world, facts(None, manifest.fingerprint))

    def claim() -> Path | None:
        for split in SPLITS:
            if cfg.data.on_damage == "raise":
                manifest.check_shards(split)
            elif damage := manifest.damage(split):
                print(f"attvae: {damage}: going on, since data.on_damage=skip", file=sys.stderr)
        folder.claim(room=parameters * CHECKPOINT_BYTES)
        start = _where_to_start(cfg, folder, manifest)
        return start.folder if start else None

    start_folder = world.from_first(claim)
    check_shared(world, folder.path)
    world.stop.work_begins()
    torch.manual_seed(seeding.torch_seed(cfg.seed, Purpose.MODULE))
    by = cfg.engine.depth_attention
    model = DeepVAE(cfg.model, manifest.spec, recompute=cfg.engine.recompute, depth_attention=by).to(world.device)
    averaged = DeepVAE(cfg.model, manifest.spec, depth_attention=by).to(world.device)
    start = world.all_or_none(lambda: Checkpoint(start_folder, verified=True)) if start_folder else None
    resumed = None if start_folder == cfg.init_from else start
    if start is not None:  # a resumed run gets its parameters with all the rest, from the engine
        world.all_or_none(lambda: start.check_fits(model) if resumed else start.load_into(model, weights="ema"))
    if cfg.engine.name == "zero":
        import_deepspeed(world.device)  # before the shipper's thread imports mlflow
    shipper = _describe(planned, folder, world, resumed)
    if world.rank == 0:
        watchdog.record_verdict = partial(folder.record_status, "FAILED")
    loop: Loop | None = None

    def end(status: Status, reason: str = "") -> None:
        if loop:
            loop.trackers.close(status, reason)
        if world.rank == 0:
            try:
                folder.record_status(status, reason)
            except OSError as error:  # a full disk, which may be what this is about
                print(f"attvae: {folder.status} cannot be written ({error.strerror})", file=sys.stderr, flush=True)
        if shipper:
            shipper.finish(status, reason)

    try:
        loop = Loop(
            cfg,
            folder,
            world,
            manifest,
            batch,
            build_engine(cfg, model, world, batch, resumed),
            model.latent_shapes,
            averaged,
            lambda start: _trackers(cfg, folder, world, start, shipper),
            resumed,
        )
        loop.run()
        world.phases.enter("final figures")
        summary = final_figures(loop.evaluation)
        summary |= {"samples_seen": loop.samples_seen, "parameters": parameters, "wall_s": loop.wall_s}
        if world.rank == 0:
            figures = {f"test/{name}": summary["test"][name] for name in ("nelbo_nats", "nll_nats", "bits_per_dim")}
            loop.trackers.metrics(loop.samples_seen, figures)
            shutil.rmtree(folder.model, ignore_errors=True)  # of a run whose summary was removed
            _export(folder, averaged, manifest, loop.samples_seen, summary)
            write_json(folder.summary, summary)
        world.phases.enter("report")
        if world.rank == 0:
            report_at_the_end(folder, cfg, averaged, manifest, loop.samples_seen)
    except StopRequestedError as request:
        if world.rank == 0:
            folder.stopping()
            print(f"attvae: {request}: saving, then ending", file=sys.stderr, flush=True)
        outcome = f"{request}: failed while saving"
        try:
            saved = loop is None or loop.save_before_stop()
            outcome = f"{request}: {'saved' if saved else 'not saved'}, the same command goes on"
            world.stop.saved()
        finally:
            end("KILLED", outcome)
        world.barrier()  # the first rank to exit makes launchers end the others
        raise
    except Exception as error:
        if not is_known_to_all(error) and world.size > 1:
            watchdog.report(error)  # before the trackers, which may be slow
        end("FAILED", f"{type(error).__name__}: {error}")
        raise
    end("FINISHED")


def _where_to_start(cfg: RunConfig, folder: RunFolder, manifest: Manifest) -> Checkpoint | None:
    """Own run folder > resume > init_from > scratch. On rank 0, once the folder is ours."""
    if folder.config.is_file():
        changed = config.differences(config.load(folder.config), cfg)
        if changed:
            raise ValueError(
                f"{folder.path} holds a run of another configuration ({'; '.join(changed)}): "
                "go back to that configuration, or choose another folder with --out"
            )
    checkpoint.remove_partial(folder.checkpoints)
    start = newest_checkpoint(folder)
    if start is None and (unread := checkpoint.complete(folder.checkpoints)):
        raise ValueError(
            f"none of the {len(unread)} checkpoints in {folder.checkpoints} can be read, as said above: mend or move "
            "them, or choose another folder with --out"
        )
    if start is None and cfg.resume is not None:
        start = Checkpoint(cfg.resume)
    if start is not None:
        _check_same_data(start, cfg, manifest)
        return start
    return Checkpoint(cfg.init_from) if cfg.init_from is not None else None


def _check_same_data(start: Checkpoint, cfg: RunConfig, manifest: Manifest) -> None:
    trained_on = start.state["data_fingerprint"]
    if trained_on != manifest.fingerprint:
        raise ValueError(
            f"{start.folder} was trained on data with fingerprint {trained_on}, but {cfg.data.path} has "
            f"{manifest.fingerprint}: prepare the same data again, or start anew with init_from"
        )


def _describe(planned: Plan, folder: RunFolder, world: World, resumed: Checkpoint | None) -> Shipper | None:
    """Writes into the run folder what the run is; on rank 0, what sends it to MLflow if that is wanted. Collective."""
    cfg, manifest, batch, parameters, _ = planned
    assert manifest is not None
    hosts = list(dict.fromkeys(world.gather(socket.gethostname())))
    if world.rank != 0:
        return None
    about = {
        "hosts": hosts,
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "CPU",
        "ranks": world.size,
        "engine": cfg.engine.name,
        "zero_stage": cfg.engine.stage if cfg.engine.name == "zero" else None,
        "parameters": parameters,
        "dataset": dataset_of(manifest, cfg.data),
        "resumed_from": str(resumed.folder) if resumed else None,
    }
    folder.describe(cfg.to_yaml(), about)
    if cfg.engine.name == "zero":
        write_json(folder.deepspeed, deepspeed_config(cfg.engine, batch, world.size))
    if resumed and resumed.folder.parent == folder.checkpoints and (run_id := resumed.state.get("mlflow")):
        folder.go_on_in_mlflow(run_id)
    folder.record_status("RUNNING")
    return (
        Shipper(cfg.tracking, folder.path, config.flatten(cfg.model_dump(mode="json"))) if cfg.tracking.mlflow else None
    )


def _export(
    folder: RunFolder, averaged: DeepVAE, manifest: Manifest, samples_seen: int, summary: dict[str, Any]
) -> None:
    stated = ExportConfig(
        model=averaged.config,
        spec=averaged.spec,
        trained_on=TrainedOn(name=manifest.name, version=manifest.version, fingerprint=manifest.fingerprint),
        samples_seen=samples_seen,
    )
    export.write(folder.model, averaged, stated, model_card(stated, averaged, summary=summary, source=manifest.source))


def _trackers(
    cfg: RunConfig, folder: RunFolder, world: World, resumed: Checkpoint | None, shipper: Shipper | None
) -> FanOut:
    """Of a run that begins, or goes on from a checkpoint: also from one that it was rolled back to."""
    if world.rank != 0:
        return FanOut([])
    own = resumed is not None and resumed.folder.parent == folder.checkpoints
    samples_seen = resumed.samples_seen if resumed else 0
    journal = Journal(folder.journal, samples_seen if own else None)
    console = Console(cfg.train.samples, samples_seen)
    if resumed:
        console.note(f"resumed from {resumed.folder} at {samples_seen:,} samples")
    trackers: list[Tracker] = [journal, console]
    if shipper:
        shipper.follow()
        trackers.append(shipper)
    return FanOut(trackers)
