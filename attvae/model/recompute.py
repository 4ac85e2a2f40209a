"""Activation checkpointing: less memory for a second forward pass (Chen et al. 2016)."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from attvae.model.batch_norm import kept_statistics


def recomputed(module: nn.Module, *args: Any) -> Any:
    """`module(*args)`, whose intermediates the backward pass computes again, with the same random draws."""
    if not torch.is_grad_enabled():
        return module(*args)
    return checkpoint(module, *args, use_reentrant=False, preserve_rng_state=True, context_fn=_contexts)


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the forward pass and around its repetition."""
    return nullcontext(), kept_statistics()
