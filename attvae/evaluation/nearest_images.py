"""The training images nearest to given ones: does the model repeat what it has seen?

The distance is the root of the mean squared difference of two images' values, in pixel values: L2 / √(C H W). Images
that a model has memorised come closer to the training images than new images of the data, the test split, do.
"""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from attvae.evaluation.image_table import Cell, draw_table, tile


class Nearest(NamedTuple):
    """For each of n images its nearest training image, mirrored where that is nearer, and how far that is."""

    images: Tensor  # [n, C, H, W]
    distances: Float[Tensor, "n"]
    searched: int
    """Training images."""

    def as_json(self) -> dict[str, Any]:
        found = self.distances.tolist()
        return {
            "mean": statistics.fmean(found),
            "standard_error": statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else None,
            "median": statistics.median(found),
            "min": min(found),
            "identical": sum(d == 0 for d in found),
        }


@torch.no_grad()
def nearest_images(x: Tensor, batches: Iterable[Tensor], mirrors: Sequence[Sequence[int]] = ((),)) -> Nearest:
    """Goes through the batches [b, C, H, W] once and keeps only the nearest found so far.

    Args:
        x: images [n, C, H, W] of the same kind.
        mirrors: dimensions of [n, C, H, W] to flip, one entry for each of the ways in which images are compared.

    Raises:
        ValueError: there is no image to compare with.
    """
    views = torch.cat([x.float().flip(list(dims)) for dims in mirrors]).flatten(1)
    squares = views.square().sum(dim=1, keepdim=True)
    best = torch.full((len(views),), torch.inf, device=x.device)
    found = torch.empty_like(views)
    searched = 0
    for batch in batches:
        if not len(batch):
            continue
        flat = batch.to(x.device).flatten(1).float()
        # Rounding may swap neighbours that are equally far; the distances themselves are computed anew below.
        distances, places = (squares - 2 * views @ flat.T + flat.square().sum(dim=1)).min(dim=1)
        nearer = distances < best
        best = torch.where(nearer, distances, best)
        found[nearer] = flat[places[nearer]]
        searched += len(batch)
    if not searched:
        raise ValueError("no training image to compare with: all of them are damaged")
    exact = (found.double() - views.double()).square().mean(dim=1).sqrt().view(len(mirrors), len(x))
    distances, view = exact.min(dim=0)
    # Seen from the image itself, its neighbour is mirrored.
    nearest = found.view(len(mirrors), *x.shape)
    images = [nearest[v, i].flip([d - 1 for d in mirrors[v]]) for i, v in enumerate(view.tolist())]
    return Nearest(torch.stack(images).to(x.dtype), distances, searched)


def memorisation(samples: Nearest, tests: Nearest) -> dict[str, Any]:
    """Distances to the nearest training image, of samples and of test images, side by side.

    `closer_than_test` is the share of pairs of a sample and a test image in which the sample is nearer to the training
    images, ties counted half: 0.5 where both are alike, towards 1 where the model repeats them.
    """
    gaps = samples.distances[:, None] - tests.distances[None]
    closer = ((gaps < 0).double() + 0.5 * (gaps == 0).double()).mean()
    return {
        "searched_training_images": samples.searched,
        "samples": samples.as_json(),
        "test_images": tests.as_json(),
        "closer_than_test": float(closer),
    }


def nearest_images_picture(
    samples: Tensor, of_samples: Nearest, tests: Tensor, of_tests: Nearest, white: int, columns: int
) -> Image.Image:
    """Samples above their nearest training images, test images above theirs; those that come closest first.

    Args:
        white: the pixel value that is white.
    """
    columns = min(columns, len(samples), len(tests))
    rows: list[tuple[str, Sequence[Cell]]] = []
    for name, x, nearest in (("sample", samples, of_samples), ("test image", tests, of_tests)):
        order = nearest.distances.argsort(stable=True)[:columns].tolist()
        rows += [
            (name, [tile(x[i], white) for i in order]),
            ("nearest in training", [tile(nearest.images[i], white) for i in order]),
            ("distance", [f"{nearest.distances[i]:.3g}" for i in order]),
        ]
    unit = "ones and zeros" if white == 1 else f"pixel values of 0 to {white}"
    return draw_table(
        "nearest training images",
        [""] * columns,
        rows,
        notes=[
            f"closest first of {len(samples)} samples and {len(tests)} test images; "
            f"{of_samples.searched:,} training images searched",
            f"mean distance: samples {float(of_samples.distances.mean()):.4g}, "
            f"test images {float(of_tests.distances.mean()):.4g} (root mean square, {unit})",
        ],
    )
