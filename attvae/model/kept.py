"""What a forward pass keeps for its backward pass, counted."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attvae.model.config import ModelConfig
from attvae.model.vae import DeepVAE
from attvae.spec import DataSpec

IMAGES = 2
"""One image would leave it open which leading 1 is that of the batch."""


class Kept(NamedTuple):
    """In bytes."""

    per_image: float
    per_pass: int
    """The first context, and kernels as the convolutions take them, normalised and perhaps rounded: for any batch."""


def kept_bytes(config: ModelConfig, spec: DataSpec, recompute: Sequence[str] = (), *, autocast: bool = False) -> Kept:
    """Counts the memory between the two passes of a micro-batch, parameters and buffers left out.

    A throwaway model runs forward with two images on the CPU; every storage counts once. What `recompute` leaves out
    comes back for one part at a time in the backward pass, which is not counted.

    Raises:
        ValueError: the images of `spec` do not fit `config`.
    """
    with torch.device("meta"):
        model = DeepVAE(config, spec, recompute=recompute)
    model = model.to_empty(device="cpu").train()  # of the weights only the shapes matter
    own = [*model.parameters(), *model.buffers()]
    storages = {tensor.untyped_storage().data_ptr() for tensor in own}
    shapes = {tensor.shape for tensor in own}
    per_batch = per_pass = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal per_batch, per_pass
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in storages:  # the graph keeps it: no other can take its place
            storages.add(storage.data_ptr())
            if tensor.shape in shapes or tensor.stride()[:1] == (0,):  # the first context is one for all images
                per_pass += storage.nbytes()
            else:
                per_batch += storage.nbytes()
        return tensor

    dtype = torch.uint8 if spec.num_bits <= 8 else torch.uint16
    noise = [torch.zeros(IMAGES, *shape) for shape in model.latent_shapes]
    with (
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        elbo = model(torch.zeros(IMAGES, *spec.shape, dtype=dtype), noise)
    del elbo  # which has kept everything until here
    return Kept(per_batch / IMAGES, per_pass)
