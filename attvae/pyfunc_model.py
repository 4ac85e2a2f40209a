"""A stored model as MLflow's pyfunc loads it: images in, their bounds out.

The stored model names this module as its loader and holds a copy of this package beside the export folder. It runs
where attvae is not installed, and imports nothing that only training needs: no deepspeed, ray, webdataset or mlflow.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Shaped
from numpy import ndarray

from attvae import export
from attvae.data.augment import for_evaluation
from attvae.evaluation_noise import EVALUATION_SEED, with_evaluation_noise
from attvae.model.vae import DeepVAE

IMAGES_AT_ONCE = 100  # in a forward pass, which bounds its memory


class PyfuncModel:
    """The negative evidence lower bound of images, with the noise of the evaluation of a training run."""

    def __init__(self, model: DeepVAE) -> None:
        self._model = model

    def predict(
        self, images: Shaped[ndarray, "b h w c"], params: dict[str, Any]
    ) -> dict[str, Float64[ndarray, "b *layers"]]:
        """The bound of each image and its parts, in nats, averaged over the draws.

        Args:
            images: as they are stored in shards: uint8 (uint16 beyond 8 bits), not yet binarised.
            params: `draws`: so often is each image evaluated, with other noise and binarisation each time; `first_id`:
                the place of the first image in its split, since the noise belongs to the place.

        Returns:
            `nelbo_nats` [B] = `nll_nats` [B] + the sum over the layers of `kl_nats` [B, L].

        Raises:
            ValueError: no draw, a negative place, or images that the model does not take.
        """
        draws, first_id = int(params["draws"]), int(params["first_id"])
        if draws < 1:
            raise ValueError(f"draws={draws}: each image is to be drawn at least once")
        if first_id < 0:
            raise ValueError(f"first_id={first_id}: places in a split count from 0")
        spec = self._model.spec
        if images.size and (found := int(images.max())) > spec.max_value:
            raise ValueError(f"the model takes pixel values 0 to {spec.max_value}, got {found}")
        layers = len(self._model.latent_shapes)
        nll_nats, kl_nats = np.zeros(len(images)), np.zeros((len(images), layers))
        for start in range(0, len(images), IMAGES_AT_ONCE):
            here = slice(start, start + IMAGES_AT_ONCE)
            ids = first_id + np.arange(len(images))[here]
            for draw in range(draws):
                x = for_evaluation(images[here], spec, EVALUATION_SEED, ids, draw)
                nll, kl = self._parts(torch.from_numpy(x), torch.from_numpy(ids), draw)
                nll_nats[here] += nll / draws
                kl_nats[here] += kl / draws
        return {"nelbo_nats": nll_nats + kl_nats.sum(axis=1), "nll_nats": nll_nats, "kl_nats": kl_nats}

    @torch.no_grad()
    def _parts(self, x: torch.Tensor, ids: torch.Tensor, draw: int) -> tuple[ndarray, ndarray]:
        device = next(self._model.parameters()).device
        elbo = self._model(*with_evaluation_noise(self._model, x, ids, draw, device))
        return elbo.nll_nats.double().cpu().numpy(), elbo.kl_nats.double().cpu().numpy().T


def _load_pyfunc(path: str) -> PyfuncModel:
    """What MLflow calls, with the export folder."""
    return PyfuncModel(export.load(path).to("cuda" if torch.cuda.is_available() else "cpu"))
