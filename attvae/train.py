"""One run, top to bottom. The same command starts it, resumes it, or says that it is done."""

import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import attvae
from attvae import checkpoint, config, schedule, seeding
from attvae.checkpoint import Checkpoint
from attvae.config import RunConfig
from attvae.data.loader import Batch, eval_batches, open_manifest, train_batches
from attvae.data.manifest import SPLITS, Manifest
from attvae.data.to_device import to_device
from attvae.engine.batch import BatchPlan, divide
from attvae.engine.deepspeed_config import deepspeed_config
from attvae.engine.guard import GradientGuard
from attvae.engine.plain import PlainEngine
from attvae.engine.protocol import Engine
from attvae.engine.rendezvous import World, device_of_this_rank, end_with_launcher, join, leave
from attvae.engine.zero import ZeroEngine
from attvae.evaluate import EVALUATION_SEED, evaluation_of, final_figures, with_evaluation_noise
from attvae.evaluation.elbo import ElboSums
from attvae.evaluation.reconstructions import reconstruction_grid
from attvae.evaluation.samples import sample_grid
from attvae.model.official import count_parameters, l2_coefficients
from attvae.model.vae import DeepVAE
from attvae.objective import training_loss
from attvae.optim.choose import choose
from attvae.optim.config import OptimConfig
from attvae.run_folder import RunFolder, environment, write_json
from attvae.seeding import Purpose
from attvae.skips import Skips
from attvae.tracking.console import Console
from attvae.tracking.fan_out import FanOut
from attvae.tracking.jsonl import Journal
from attvae.tracking.mlflow_tracker import MlflowTracker
from attvae.tracking.protocol import Tracker

PICTURED_IMAGES = 32


class DivergedError(RuntimeError):
    """The loss or the gradient is no longer finite."""


class Plan(NamedTuple):
    """A run that has passed every check that needs no process group."""

    cfg: RunConfig
    manifest: Manifest | None
    """None: the data are not there yet."""
    batch: BatchPlan
    parameters: int
    published_count: int
    """Parameters as the paper's authors count them."""


def plan(cfg: RunConfig, ranks: int, *, data_needed: bool = True) -> Plan:
    """Checks what can be checked before a process group exists.

    Raises:
        ValueError: the data are missing or others than stated, the model does not fit them, the ranks do not divide
            the batch, or the precision is not for this device.
    """
    batch = divide(cfg.train.global_batch, ranks, cfg.engine.micro_batch)
    if device_of_this_rank().type == "cpu":
        if cfg.engine.precision == "fp16":
            raise ValueError("engine.precision=fp16 needs a GPU and there is none: use autocast, bf16 or fp32")
        if cfg.engine.compile:
            raise ValueError(
                "engine.compile needs a GPU and there is none: on a CPU, torch.compile gives wrong gradients of this "
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


def train(planned: Plan, out: Path) -> None:
    """Trains, evaluates, and leaves the run folder `out`. Collective.

    Raises:
        ValueError: bad input; the message names the thing and the remedy.
        ConnectionError: remote data stayed silent.
        FailedOnAnotherRankError: in place of these, where another rank says it.
        DivergedError: the training left the finite numbers.
    """
    end_with_launcher()
    world = join(patience_s=planned.cfg.data.retry_s)  # of a rank whose shard does not come
    try:
        _train(planned, RunFolder(out), world)
    finally:
        leave()


def _train(planned: Plan, folder: RunFolder, world: World) -> None:
    started = time.monotonic()
    cfg, manifest, batch, parameters, _ = planned
    assert manifest is not None, "only a dry run does without data"

    # ------------------------------------------------------------------------------------------------ 1. run folder
    def claim() -> Path | None:
        for split in SPLITS:
            if cfg.data.on_damage == "raise":
                manifest.check_shards(split)
            elif damage := manifest.damage(split):
                print(f"attvae: {damage}: going on, since data.on_damage=skip", file=sys.stderr)
        folder.claim()
        return _where_to_start(cfg, folder, manifest)

    start_folder = world.from_first(claim)

    # ------------------------------------------------------------------------------------------ 2. model and engine
    torch.manual_seed(seeding.torch_seed(cfg.seed, Purpose.MODULE))
    model = DeepVAE(cfg.model, manifest.spec, recompute=cfg.engine.recompute).to(world.device)
    averaged = DeepVAE(cfg.model, manifest.spec).to(world.device)  # takes the EMA weights when they are looked at
    start = Checkpoint(start_folder) if start_folder else None
    resumed = None if start_folder == cfg.init_from else start
    if start is not None:
        start.load_into(model, weights="parameters" if resumed else "ema")
    samples_seen = resumed.samples_seen if resumed else 0
    seconds_before = float(resumed.state["wall_s"]) if resumed else 0.0
    engine = _engine(cfg, model, world, batch, resumed)

    # ------------------------------------------------------------------------------------------------------ 3. data
    batches = to_device(
        train_batches(manifest, cfg.data, cfg.seed, samples_seen, batch.micro_batch, world.rank, world.size),
        world.device,
    )
    sums = ElboSums(cfg.model.num_layers, manifest.spec)
    evaluation = evaluation_of(averaged, cfg, manifest, world)
    epoch = manifest.samples("train")
    skips = Skips(world, cfg.data.skip_limit, epoch, resumed.state["skipped"] if resumed else 0)
    pictured = world.all_or_none(
        lambda: next(eval_batches(manifest, cfg.data, "val", EVALUATION_SEED, 0, PICTURED_IMAGES, 0, 1))
    )

    def micro_loss(micro: Batch, beta: float, images: float, forward: nn.Module) -> Tensor:
        """Of a micro-batch that stands for `images` valid ones: those of the global batch over its micro-batches."""
        positions = [int(p) for p in micro.positions]
        # Noise inside the model (noise_stddev) follows the position as well, so that a resumed run repeats it.
        torch.manual_seed(seeding.torch_seed(cfg.seed, Purpose.MODULE, 1 + positions[0]))
        noise = seeding.latent_noise(cfg.seed, Purpose.LATENT, [(p, 0) for p in positions], model.latent_shapes)
        elbo = forward(micro.x, [eps.to(world.device) for eps in noise])
        weights = micro.weights.to(world.device)
        sums.add(elbo, weights)
        return (
            float(micro.weights.sum())
            / images
            * training_loss(
                elbo.nll_nats,
                elbo.kl_nats,
                beta,
                weights,
                free_bits_nats=cfg.train.free_bits_nats,
                balance_kl=cfg.train.balance_kl,
            )
        )

    # -------------------------------------------------------------------------------------------------- 4. tracking
    trackers = _trackers(cfg, folder, world, manifest, batch, parameters, resumed)

    def wall_s() -> float:
        return seconds_before + time.monotonic() - started

    def look() -> None:
        """Figures and pictures of the EMA weights on the validation split."""
        _load_average(averaged, engine)
        figures = evaluation._replace(draws=1).of("val")
        gates = {f"attention/gate_{name.replace('/', '_')}": float(g) for name, g in averaged.attention_gates().items()}
        trackers.metrics(samples_seen, figures.metrics("val") | gates)
        if world.rank == 0:
            samples, reconstructions = (
                folder.images / f"{name}-{samples_seen:012d}.png" for name in ("samples", "reconstructions")
            )
            sample_grid(averaged, 64, EVALUATION_SEED, 1.0, samples)
            x, noise = with_evaluation_noise(averaged, pictured.x, pictured.ids, 0, world.device)
            reconstruction_grid(averaged, x, noise, reconstructions)
            trackers.image(samples_seen, "samples", samples)
            trackers.image(samples_seen, "reconstructions", reconstructions)

    def save() -> None:
        state = {
            "samples_seen": samples_seen,
            "updates": engine.updates,
            "guard": engine.guard.state(),
            "skipped": skips.skipped,
            "wall_s": wall_s(),
            "seed": cfg.seed,
            "mlflow": folder.mlflow_run_id(),
            "config": cfg.model_dump(mode="json"),
            "data_fingerprint": manifest.fingerprint,
            "attvae": attvae.__version__,
        }
        checkpoint.save(folder.checkpoint(samples_seen), engine, state)
        if world.rank == 0:
            checkpoint.keep_last(folder.checkpoints, cfg.checkpoint.keep_last)

    try:
        # ----------------------------------------------------------------------------------------- 5. training loop
        logged_at, logged_samples = time.monotonic(), samples_seen
        step = cfg.train.global_batch
        while samples_seen < cfg.train.samples:
            lr, beta = _rates(cfg, samples_seen, epoch)
            micros = world.all_or_none(lambda: [next(batches) for _ in range(batch.accumulation)])
            samples_seen += step
            valid = skips.valid(micros, samples_seen) if cfg.data.on_damage == "skip" else step
            images = max(valid, 1) / (world.size * batch.accumulation)
            grad_norm = engine.train_step([partial(micro_loss, micro, beta, images) for micro in micros], lr).grad_norm
            last = samples_seen >= cfg.train.samples

            if last or schedule.due(samples_seen, cfg.train.log_every, step):
                figures = sums.figures(world.sum)
                sums = ElboSums(cfg.model.num_layers, manifest.spec)
                if not math.isfinite(figures.nelbo_nats + grad_norm):
                    raise DivergedError(
                        f"training diverged before sample {samples_seen}: NELBO {figures.nelbo_nats}, gradient norm "
                        f"{grad_norm}; lower train.lr (now {cfg.train.lr}) or train.clip_norm ({cfg.train.clip_norm})"
                    )
                now = time.monotonic()
                rate = (samples_seen - logged_samples) / (now - logged_at)
                logged_at, logged_samples = now, samples_seen
                trackers.metrics(
                    samples_seen,
                    figures.metrics("train")
                    | {"train/grad_norm": grad_norm, "train/lr": lr, "train/beta": beta, "perf/images_per_s": rate}
                    | {"train/skipped_updates": engine.guard.skipped}
                    | ({"data/skipped": skips.skipped} if cfg.data.on_damage == "skip" else {}),
                )
            looking = last or schedule.due(samples_seen, cfg.eval.every, step)
            saving = last or schedule.due(samples_seen, cfg.checkpoint.every, step)
            if looking:
                look()
            if saving:
                save()
            if looking or saving:  # images/s are those of the training alone
                logged_at, logged_samples = time.monotonic(), samples_seen

        # ----------------------------------------------------------------------------------------- 6. final figures
        _load_average(averaged, engine)
        summary = final_figures(evaluation)
        summary |= {"samples_seen": samples_seen, "parameters": parameters, "wall_s": wall_s()}
        if world.rank == 0:
            trackers.metrics(
                samples_seen,
                {f"test/{name}": summary["test"][name] for name in ("nelbo_nats", "nll_nats", "bits_per_dim")},
            )
            trackers.artifact(folder.config)
            write_json(folder.summary, summary)
            trackers.artifact(folder.summary)
    except BaseException as error:
        trackers.close(
            "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", f"{type(error).__name__}: {error}"
        )
        raise
    trackers.close("FINISHED")


def _where_to_start(cfg: RunConfig, folder: RunFolder, manifest: Manifest) -> Path | None:
    """Own run folder > resume > init_from > scratch. On rank 0, once the folder is ours."""
    if folder.config.is_file():
        changed = config.differences(config.load(folder.config), cfg)
        if changed:
            raise ValueError(
                f"{folder.path} holds a run of another configuration ({'; '.join(changed)}): "
                "go back to that configuration, or choose another folder with --out"
            )
    checkpoint.remove_partial(folder.checkpoints)
    for newest in reversed(checkpoint.complete(folder.checkpoints)):
        try:
            own = Checkpoint(newest)
        except ValueError as error:
            print(f"attvae: {error}; trying the one before", file=sys.stderr)
            continue
        _check_same_data(own, cfg, manifest)
        return newest
    if cfg.resume is not None:
        _check_same_data(Checkpoint(cfg.resume), cfg, manifest)
        return cfg.resume
    return None if cfg.init_from is None else Checkpoint(cfg.init_from).folder


def _check_same_data(start: Checkpoint, cfg: RunConfig, manifest: Manifest) -> None:
    trained_on = start.state["data_fingerprint"]
    if trained_on != manifest.fingerprint:
        raise ValueError(
            f"{start.folder} was trained on data with fingerprint {trained_on}, but {cfg.data.path} has "
            f"{manifest.fingerprint}: prepare the same data again, or start anew with init_from"
        )


def _engine(cfg: RunConfig, model: DeepVAE, world: World, batch: BatchPlan, resumed: Checkpoint | None) -> Engine:
    updated_on = torch.device("cpu") if cfg.engine.offload_optimizer else world.device
    optimizer, why = choose(parameter_groups(model, cfg.optim), cfg.optim, updated_on)
    if world.rank == 0:
        print(f"attvae: {why}", file=sys.stderr)
    clip_norm = cfg.train.clip_norm
    guard = GradientGuard.continued(cfg.train.spike_limit, resumed.state.get("guard", {}) if resumed else {})
    restored = resumed.tensor if resumed else None
    updates = int(resumed.state["updates"]) if resumed else 0
    match cfg.engine.name:
        case "plain":
            return PlainEngine(
                model,
                optimizer,
                world,
                cfg.engine,
                clip_norm=clip_norm,
                guard=guard,
                restored=restored,
                updates=updates,
            )
        case "zero":
            return ZeroEngine(
                model,
                optimizer,
                world,
                cfg.engine,
                batch=batch,
                clip_norm=clip_norm,
                guard=guard,
                restored=restored,
                updates=updates,
            )


def _rates(cfg: RunConfig, samples_seen: int, epoch: int) -> tuple[float, float]:
    """(learning rate, weight of the KL) of the update after `samples_seen`, for epochs of `epoch` samples."""
    train = cfg.train
    if (published := train.published_schedule) is not None:
        lr = schedule.published_lr(
            samples_seen // train.global_batch + 1,
            steps_per_epoch=epoch // train.global_batch,
            warmup_epochs=published.warmup_epochs,
            decay_epochs=published.epochs - published.warmup_epochs,
            restart_epochs=published.restart_epochs,
            peak=train.lr,
            floor=train.lr_floor,
        )
        return lr, schedule.kl_weight(samples_seen // epoch, warmup=published.kl_warmup_epochs, start=train.kl_start)
    lr = schedule.warmup_cosine(
        samples_seen, warmup=train.lr_warmup, total=train.samples, peak=train.lr, floor=train.lr_floor
    )
    return lr, schedule.kl_weight(samples_seen, warmup=train.kl_warmup, start=train.kl_start)


def parameter_groups(model: DeepVAE, optim: OptimConfig) -> list[dict[str, Any]]:
    """The parameters, by the coefficient of their L2 penalty."""
    if optim.l2 != "published":
        return [{"params": list(model.parameters())}]
    coefficients = l2_coefficients(model)
    return [
        {"params": [p for name, p in model.named_parameters() if coefficients[name] == l2], "l2": l2}
        for l2 in sorted(set(coefficients.values()))
    ]


def _load_average(averaged: DeepVAE, engine: Engine) -> None:
    """Copies the EMA weights, and the buffers as they are, into `averaged`. Collective."""
    with torch.no_grad():
        for name, ema in engine.optimizer_state("ema"):
            averaged.get_parameter(name).copy_(ema)
        for name, buffer in engine.buffers():
            averaged.get_buffer(name).copy_(buffer)


def _trackers(
    cfg: RunConfig,
    folder: RunFolder,
    world: World,
    manifest: Manifest,
    batch: BatchPlan,
    parameters: int,
    resumed: Checkpoint | None,
) -> FanOut:
    if world.rank != 0:
        return FanOut([])
    folder.describe(cfg.to_yaml())
    if cfg.engine.name == "zero":
        write_json(folder.deepspeed, deepspeed_config(cfg.engine, batch, world.size, clip_norm=cfg.train.clip_norm))
    own = resumed is not None and resumed.folder.parent == folder.checkpoints
    samples_seen = resumed.samples_seen if resumed else 0
    journal = Journal(folder.journal, samples_seen if own else None)
    console = Console(cfg.train.samples, samples_seen)
    if resumed:
        console.note(f"resumed from {resumed.folder} at {samples_seen:,} samples")
    trackers: list[Tracker] = [journal, console]
    if cfg.tracking.mlflow:
        about = environment()
        tags = {
            "attvae.version": attvae.__version__,
            "ranks": world.size,
            "engine": cfg.engine.name,
            "zero_stage": cfg.engine.stage,
            "parameters": parameters,
            "dataset": f"{manifest.name} {manifest.version}",
            "dataset_fingerprint": manifest.fingerprint,
            "host": about["host"],
            **{f"git.{key}": value for key, value in about["git"].items()},
            **{f"version.{name}": version for name, version in about["packages"].items()},
        }
        trackers.append(
            MlflowTracker(cfg.tracking, folder.path, journal, config.flatten(cfg.model_dump(mode="json")), tags)
        )
    return FanOut(trackers)
