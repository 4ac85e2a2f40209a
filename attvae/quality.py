"""How near a model's samples are to the images of the data, in the features of a given network. docs/quality.md."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from attvae.data.config import DataConfig
from attvae.data.loader import eval_batches
from attvae.data.manifest import Manifest, Split
from attvae.engine.rendezvous import World
from attvae.evaluation.feature_network import FeatureNetwork
from attvae.evaluation.frechet import FeatureMoments, frechet_estimate
from attvae.evaluation.image_means import Estimate
from attvae.evaluation.precision_recall import NEIGHBOURS, precision_recall
from attvae.evaluation_noise import sampling_noise
from attvae.model.vae import DeepVAE

COMPARED = 50_000
"""At most so many images and samples are compared one by one, for precision and recall."""
LEAST = NEIGHBOURS + 1


class Quality(NamedTuple):
    """
    Attributes:
        images: of the data, all that are not damaged.
        compared: images, and samples, that precision and recall are of.
    """

    frechet_distance: Estimate
    precision: Estimate
    recall: Estimate
    images: int
    samples: int
    compared: tuple[int, int]


class Features(NamedTuple):
    """Of numbered images, some of which may be damaged and are absent."""

    values: Float[Tensor, "b d"]
    numbers: Int64[Tensor, "b"]


class _Gathered:
    """The moments of all images' features, and the features of `compared` ones of the `total`, evenly spread."""

    def __init__(self, total: int, compared: int, dimensions: int) -> None:
        self.moments = FeatureMoments(dimensions)
        self._kept = torch.zeros(compared, dimensions)
        self._there = torch.zeros(compared)
        self._total = total

    def add(self, features: Features) -> None:
        values, numbers = features
        self.moments.add(values, numbers)
        places = numbers * len(self._kept) // self._total
        first = (numbers - 1) * len(self._kept) // self._total < places  # of those that share a place
        self._kept[places[first]] = values[first]
        self._there[places[first]] = 1

    def sum_over_ranks(self, world: World) -> None:
        self.moments.sum_over_ranks(world.sum)
        # A place is one rank's: adding zeros changes nothing, and all have the same order.
        self._kept, self._there = world.sum(self._kept), world.sum(self._there)

    @property
    def images(self) -> int:
        return int(self.moments.counts.sum())

    @property
    def kept(self) -> Float[Tensor, "n d"]:
        return self._kept[self._there > 0]


def quality(
    model: DeepVAE,
    manifest: Manifest,
    data: DataConfig,
    world: World,
    network: FeatureNetwork,
    *,
    split: Split,
    samples: int,
    temperature: float,
    batch: int,
    seed: int,
) -> Quality:
    """Of samples 0 to `samples` of this seed against the images of a split. Collective; the model is in eval mode.

    Raises:
        ValueError: too few images are left to compare, or the network fails.
    """
    total = manifest.samples(split)
    compared = min(total, samples, COMPARED)
    of_images = _Gathered(total, compared, network.dimensions)
    of_samples = _Gathered(samples, compared, network.dimensions)
    for gathered, made in (
        (of_images, _features_of_images(network, manifest, data, world, split, batch, seed)),
        (of_samples, _features_of_samples(network, model, world, samples, temperature, batch, seed)),
    ):
        while (features := world.all_or_none(partial(next, made, None))) is not None:
            gathered.add(features)
        gathered.sum_over_ranks(world)
    images, drawn = of_images.kept, of_samples.kept
    if min(len(images), len(drawn)) < LEAST:
        raise ValueError(
            f"{len(images)} images of {split!r} and {len(drawn)} samples are too few to compare: precision and recall "
            f"need {LEAST} of each"
        )
    found = precision_recall(images, drawn, world.rank, world.size, world.sum)
    return Quality(
        frechet_distance=frechet_estimate(of_images.moments, of_samples.moments),
        precision=found.precision,
        recall=found.recall,
        images=of_images.images,
        samples=of_samples.images,
        compared=(len(images), len(drawn)),
    )


def _features_of_images(
    network: FeatureNetwork,
    manifest: Manifest,
    data: DataConfig,
    world: World,
    split: Split,
    batch: int,
    seed: int,
) -> Iterator[Features]:
    """Of binary data, those of binary images: draw 0 of each."""
    for each in eval_batches(manifest, data, split, seed, 0, batch, world.rank, world.size):
        counted = each.weights > 0
        yield Features(network(each.x[counted]), each.ids[counted])


@torch.no_grad()
def _features_of_samples(
    network: FeatureNetwork, model: DeepVAE, world: World, samples: int, temperature: float, batch: int, seed: int
) -> Iterator[Features]:
    """As many batches on all ranks; the last ones may be empty."""
    for start in range(0, samples, batch * world.size):
        first = min(start + batch * world.rank, samples)
        numbers = range(first, min(first + batch, samples))
        noise, uniform = sampling_noise(model, numbers, seed)
        if numbers:
            noise = [eps.to(world.device) for eps in noise]
            x = model.sample(len(numbers), temperature, noise, uniform.to(world.device))
        else:
            x = torch.empty(0, *model.spec.shape, dtype=torch.uint8)
        yield Features(network(x), torch.tensor([*numbers], dtype=torch.int64))
