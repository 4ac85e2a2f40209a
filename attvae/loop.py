"""The training loop, with the state that a checkpoint holds."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import attvae
from attvae import checkpoint, schedule
from attvae.checkpoint import Checkpoint, CheckpointWriter
from attvae.config import RunConfig
from attvae.data.loader import Batch, eval_batches, train_batches
from attvae.data.manifest import Manifest
from attvae.data.to_device import Fed, to_device
from attvae.engine.batch import BatchPlan
from attvae.engine.guard import GradientGuard
from attvae.engine.protocol import Engine
from attvae.engine.rendezvous import World
from attvae.engine.system_load import SystemLoad
from attvae.engine.throughput import Throughput
from attvae.evaluate import Evaluation, evaluation_of
from attvae.evaluation.depth_attention import depth_attention_of
from attvae.evaluation.depth_attention_picture import depth_attention_picture
from attvae.evaluation.elbo import ElboFigures, ElboSums
from attvae.evaluation.layer_kl_picture import layer_kl_picture
from attvae.evaluation.reconstructions import reconstruction_grid
from attvae.evaluation.samples import sample_grid
from attvae.evaluation_noise import EVALUATION_SEED, with_evaluation_noise
from attvae.micro_batch import elbo_and_loss, noise_of
from attvae.model.flops import training_flops
from attvae.model.vae import DeepVAE
from attvae.run_folder import RunFolder
from attvae.skips import Skips
from attvae.tracking.fan_out import FanOut

PICTURED_IMAGES = 32


class DivergedError(RuntimeError):
    """Training has left the useful numbers, and going back has not helped."""

    known_to_all = True  # every rank raises it: attvae.engine.rendezvous.is_known_to_all


class Loop:
    """Trains from where `start` says, or from scratch. Every method is collective."""

    def __init__(
        self,
        cfg: RunConfig,
        folder: RunFolder,
        world: World,
        manifest: Manifest,
        batch: BatchPlan,
        engine: Engine,
        latent_shapes: Sequence[tuple[int, ...]],
        averaged: DeepVAE,
        trackers_from: Callable[[Checkpoint | None], FanOut],
        start: Checkpoint | None,
    ) -> None:
        """
        Args:
            averaged: a model that takes the EMA weights when they are looked at.
            trackers_from: makes the trackers of a run that goes on from a checkpoint, or begins.
            start: the checkpoint whose state the engine has already.
        """
        self._cfg = cfg
        self._folder = folder
        self._world = world
        self._manifest = manifest
        self._batch = batch
        self._engine = engine
        self._latent_shapes = latent_shapes
        self._averaged = averaged
        self._trackers_from = trackers_from
        self._epoch = manifest.samples("train")
        self._writer = CheckpointWriter(folder.checkpoints, world, cfg.checkpoint, cfg.train.global_batch)
        self._throughput = Throughput(
            world,
            flops_per_image=training_flops(cfg.model, manifest.spec, world.device),
            global_batch=cfg.train.global_batch,
            precision=cfg.engine.precision,
        )
        self._system_load = SystemLoad(world.device, folder.path)
        self.evaluation: Evaluation = evaluation_of(averaged, cfg, manifest, world)
        self._pictured = world.all_or_none(
            lambda: next(eval_batches(manifest, cfg.data, "val", EVALUATION_SEED, 0, PICTURED_IMAGES, 0, 1))
        )
        self._wall_from = time.monotonic() - (float(start.state["wall_s"]) if start else 0.0)
        self._roll_backs = int(start.state["roll_backs"]) if start else 0
        self._go_on_from(start)

    def _go_on_from(self, start: Checkpoint | None) -> None:
        cfg, manifest, world = self._cfg, self._manifest, self._world
        state = start.state if start else {}
        self.samples_seen = start.samples_seen if start else 0
        self._saved_at = self.samples_seen if start and start.folder.parent == self._folder.checkpoints else None
        self._looked = bool(state.get("looked", True))
        self._skips = Skips(world, cfg.data.skip_limit, self._epoch, int(state.get("skipped", 0)))
        self._sums = ElboSums(cfg.model.num_layers, manifest.spec)
        self._sums.restore(state.get("sums", []), world.rank, world.size)
        self._latest_sums = self._sums
        self._batches = to_device(
            train_batches(
                manifest, cfg.data, cfg.seed, self.samples_seen, self._batch.micro_batch, world.rank, world.size
            ),
            world.device,
            self._noise,
            ahead=self._batch.accumulation,
        )
        self.trackers = self._trackers_from(start)
        self._logged_at = self.samples_seen
        world.phases.take()  # what came before is not of the next log line

    @property
    def wall_s(self) -> float:
        """Seconds since the start of the run, those between a stop and going on left out."""
        return time.monotonic() - self._wall_from

    def run(self) -> None:
        """To the last sample.

        Raises:
            ValueError, ConnectionError: the data are damaged, or silent.
            NotSavedError: a checkpoint could not be written.
            DivergedError: too many updates in a row were skipped.
            StopRequestedError: as asked; `save_before_stop` is what is left to do.
        """
        step, cfg = self._cfg.train.global_batch, self._cfg
        if not self._looked:  # a stop has cut it short
            self._look()
        while self.samples_seen < cfg.train.samples:
            if not self._train_step():
                continue
            last = self.samples_seen >= cfg.train.samples
            if last or schedule.due(self.samples_seen, cfg.train.log_every, step):
                self._log()
            if last or schedule.due(self.samples_seen, cfg.eval.every, step):
                self._look()
            if last or schedule.due(self.samples_seen, cfg.checkpoint.every, step):
                self._save()
        self._writer.finish()
        self.load_average()

    def save_before_stop(self) -> bool:
        """Keeps what has been trained since the last checkpoint; False where that failed and may not stop a run.

        Raises:
            NotSavedError: it failed, and checkpoint.on_failure=stop.
        """
        if self._saved_at != self.samples_seen and self.samples_seen > 0:
            self._save()
        self._writer.finish()
        return self.samples_seen == 0 or checkpoint.place(self._folder.checkpoints, self.samples_seen).is_dir()

    def load_average(self) -> None:
        """Copies the EMA weights, and the buffers as they are, into the model for looking at."""
        with torch.no_grad():
            for name, ema in self._engine.optimizer_state("ema"):
                self._averaged.get_parameter(name).copy_(ema)
            for name, buffer in self._engine.buffers():
                self._averaged.get_buffer(name).copy_(buffer)

    # ------------------------------------------------------------------------------------------------ one update

    def _train_step(self) -> bool:
        """One update; False where it has led back to a checkpoint instead."""
        cfg, world, batch = self._cfg, self._world, self._batch
        self._lr, self._beta = rates(cfg, self.samples_seen, self._epoch)
        world.phases.enter("data")
        micros = world.all_or_none(lambda: [next(self._batches) for _ in range(batch.accumulation)])
        self.samples_seen += cfg.train.global_batch
        valid = cfg.train.global_batch
        if cfg.data.on_damage == "skip":
            valid = self._skips.valid([micro.batch for micro in micros], self.samples_seen)
        images = max(valid, 1) / (world.size * batch.accumulation)
        self._latest_sums = ElboSums(cfg.model.num_layers, self._manifest.spec)
        losses = [partial(self._micro_loss, micro, images) for micro in micros]
        self._result = self._engine.train_step(losses, self._lr)
        world.phases.enter("rest")
        if self._result.applied:
            self._sums.merge(self._latest_sums)
        elif self._engine.guard.skipped_in_a_row >= cfg.train.roll_back_after:
            self._roll_back()
            return False
        return True

    def _noise(self, batch: Batch) -> list[Tensor]:
        return noise_of(batch, self._cfg.seed, self._latent_shapes)

    def _micro_loss(self, micro: Fed, images: float, forward: nn.Module) -> Tensor:
        """Of a micro-batch that stands for `images` valid ones: those of the global batch over its micro-batches."""
        elbo, loss = elbo_and_loss(micro, forward, self._cfg.seed, self._beta, self._cfg.train)
        self._latest_sums.add(elbo, micro.batch.weights)
        return float(micro.batch.weights.sum()) / images * loss

    # ------------------------------------------------------------------------------------------ what comes at times

    def _log(self) -> None:
        world = self._world
        self._writer.poll()  # first, for a full disk is freed by it
        values = {
            "train/lr": self._lr,
            "train/beta": self._beta,
            "train/skipped_updates": self._engine.guard.skipped,
            "train/roll_backs": self._roll_backs,
            **self._throughput.metrics(self.samples_seen - self._logged_at),
        }
        self._logged_at = self.samples_seen
        if world.rank == 0:
            values |= self._system_load.metrics()
        if self._cfg.data.on_damage == "skip":
            values["data/skipped"] = self._skips.skipped
        if math.isfinite(self._result.grad_norm):
            values["train/grad_norm"] = self._result.grad_norm
        if (figures := self._sums.figures(world.sum)) is not None:  # None: every update was skipped
            values |= figures.metrics("train")
        self._sums = ElboSums(self._cfg.model.num_layers, self._manifest.spec)
        self.trackers.metrics(self.samples_seen, values)

    def _look(self) -> None:
        """Figures and pictures of the EMA weights on the validation split."""
        self._world.phases.enter("evaluation")
        self._looked = False
        self.load_average()
        figures = self.evaluation._replace(draws=1).of("val").elbo()
        if self._world.rank == 0:
            self._show(figures)
        self._world.barrier()  # waiting for the pictures is no waiting for data
        self._looked = True

    def _show(self, figures: ElboFigures) -> None:
        averaged, samples_seen = self._averaged, self.samples_seen
        x, noise = with_evaluation_noise(averaged, self._pictured.x, self._pictured.ids, 0, self._world.device)
        attention = depth_attention_of(averaged, x, noise)
        gates = {f"attention/gate_{name.replace('/', '_')}": float(g) for name, g in averaged.attention_gates().items()}
        self.trackers.metrics(samples_seen, figures.metrics("val") | gates | attention.metrics())
        draw: dict[str, Callable[[Path], None]] = {
            "samples": partial(sample_grid, averaged, 64, EVALUATION_SEED, 1.0, averaged.spec.white),
            "reconstructions": partial(reconstruction_grid, averaged, x, noise, averaged.spec.white),
            "layer_kl": partial(layer_kl_picture, figures),
        }
        if gates:
            draw["depth_attention"] = partial(depth_attention_picture, attention, self._cfg.model.num_layers)
        for name, picture in draw.items():
            path = self._folder.images / f"{name}-{samples_seen:012d}.png"
            picture(path)
            self.trackers.image(samples_seen, name, path)

    def _save(self) -> None:
        self._world.phases.enter("checkpoint")
        state: dict[str, Any] = {
            "samples_seen": self.samples_seen,
            "updates": self._engine.updates,
            "guard": self._engine.guard.state(),
            "sums": self._world.gather(self._sums.state()),
            "looked": self._looked,
            "skipped": self._skips.skipped,
            "roll_backs": self._roll_backs,
            "wall_s": self.wall_s,
            "seed": self._cfg.seed,
            "mlflow": self._folder.mlflow_run_id(),
            "config": self._cfg.model_dump(mode="json"),
            "data_fingerprint": self._manifest.fingerprint,
            "attvae": attvae.__version__,
        }
        self._writer.save(self._engine, self.samples_seen, state)
        self._saved_at = self.samples_seen

    # -------------------------------------------------------------------------------------- when it has gone wrong

    def _roll_back(self) -> None:
        """To the newest checkpoint before the updates that were skipped; a second time is the end."""
        self._writer.finish()
        diagnosis = self._diagnosis()
        good = self._world.from_first(self._good_checkpoint)
        remedy = "lower train.lr or train.clip_norm, look at the data, or start from an earlier checkpoint"
        if self._roll_backs or good is None:
            why = "a second time" if self._roll_backs else "and there is no checkpoint to go back to"
            raise DivergedError(f"training diverged {why}: {diagnosis}; {remedy}")
        from_samples, start = self.samples_seen, Checkpoint(good, verified=True)
        note = (
            f"rolled back from {from_samples:,} to {start.samples_seen:,} samples, the next time it stops: {diagnosis}"
        )
        self.trackers.close("KILLED", note)
        guard = GradientGuard.continued(self._cfg.train.spike_limit, start.state["guard"])
        self._engine.restore(start.tensor, int(start.state["updates"]), guard)
        self._roll_backs += 1
        self._go_on_from(start)
        self._save()  # with the count, and without what was saved amid the skips

    def _good_checkpoint(self) -> Path | None:
        found = newest_checkpoint(self._folder, lambda each: each.state["guard"]["skipped_in_a_row"] == 0)
        return found.folder if found else None

    def _diagnosis(self) -> str:
        guard, figures = self._engine.guard, self._latest_sums.figures(self._world.sum)
        bad = [name for name, p in self._engine.parameters() if not bool(torch.isfinite(p).all())]
        parts = [
            f"{guard.skipped_in_a_row} updates in a row were skipped up to sample {self.samples_seen:,}",
            f"last gradient norm {self._result.grad_norm:.4g}, the running one {math.exp(guard.mean_log_norm):.4g}",
            f"learning rate {self._lr:.4g}",
            f"{len(bad)} parameters not finite, such as {bad[0]}" if bad else "all parameters finite",
        ]
        if figures is not None:
            kl = figures.kl_nats_per_layer
            worst = max(range(len(kl)), key=lambda i: math.inf if math.isnan(kl[i]) else kl[i])
            parts.append(
                f"last batch: NLL {figures.nll_nats:.4g} nats, largest KL {kl[worst]:.4g} nats, in layer {worst}"
            )
        return "; ".join(parts)


def newest_checkpoint(folder: RunFolder, admits: Callable[[Checkpoint], bool] = lambda _: True) -> Checkpoint | None:
    """The newest checkpoint of a run that is complete, intact and admitted; the damaged ones on the way are named."""
    for newest in reversed(checkpoint.complete(folder.checkpoints)):
        try:
            if admits(found := Checkpoint(newest)):
                return found
        except ValueError as error:
            print(f"attvae: {error}; trying the one before", file=sys.stderr, flush=True)
    return None


def rates(cfg: RunConfig, samples_seen: int, epoch: int) -> tuple[float, float]:
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
