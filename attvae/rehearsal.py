"""A run without data: the model and the engine that `train` would make, on random images."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from attvae import seeding
from attvae.build_engine import build_engine
from attvae.config import RunConfig
from attvae.data.loader import Batch
from attvae.data.to_device import Fed, to_device
from attvae.engine.batch import BatchPlan
from attvae.engine.rendezvous import World
from attvae.micro_batch import elbo_and_loss, noise_of
from attvae.model.vae import DeepVAE
from attvae.seeding import Purpose
from attvae.spec import DataSpec


class Rehearsal:
    """Holds what a run holds on its device, and trains as its loop does. Every method is collective."""

    def __init__(self, cfg: RunConfig, spec: DataSpec, world: World, batch: BatchPlan) -> None:
        """
        Raises:
            ValueError: the configuration does not fit the images, or the device.
        """
        torch.manual_seed(seeding.torch_seed(cfg.seed, Purpose.MODULE))
        self._cfg, self._world, self._batch = cfg, world, batch
        by = cfg.engine.depth_attention
        self.model = DeepVAE(cfg.model, spec, recompute=cfg.engine.recompute, depth_attention=by).to(world.device)
        self._latent_shapes = self.model.latent_shapes
        # A run looks at its EMA weights in this one.
        self._averaged = DeepVAE(cfg.model, spec, depth_attention=by).to(world.device)
        self._engine = build_engine(cfg, self.model, world, batch)
        self._batches = to_device(self._random_images(spec), world.device, self._noise, ahead=batch.accumulation)

    def train_step(self) -> None:
        """One update."""
        world = self._world
        world.phases.enter("data")
        micros = world.all_or_none(lambda: [next(self._batches) for _ in range(self._batch.accumulation)])
        self._engine.train_step([partial(self._micro_loss, micro) for micro in micros], self._cfg.train.lr)
        world.phases.enter("rest")

    def _random_images(self, spec: DataSpec) -> Iterator[Batch]:
        """The same ones again and again, at positions that go on."""
        size = self._batch.micro_batch
        values = 2 if spec.binary else spec.max_value + 1
        x = torch.randint(values, (size, *spec.shape)).to(torch.uint8 if spec.num_bits <= 8 else torch.uint16)
        positions = torch.arange(size) + self._world.rank * size
        while True:
            yield Batch(x, positions, positions, torch.ones(size), ())
            positions = positions + self._world.size * size

    def _noise(self, batch: Batch) -> list[Tensor]:
        return noise_of(batch, self._cfg.seed, self._latent_shapes)

    def _micro_loss(self, micro: Fed, forward: nn.Module) -> Tensor:
        return elbo_and_loss(micro, forward, self._cfg.seed, 0.5, self._cfg.train)[1]
