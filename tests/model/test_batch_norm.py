"""Synchronised batch norm on two gloo ranks against PyTorch's batch norm on the whole batch."""

import numpy as np
import torch
import torch.nn.functional as F
from golden.arrays import assert_close
from spawn import run_on_ranks
from torch import Tensor

from attvae.engine import rendezvous
from attvae.model.batch_norm import EPSILON, BatchNorm, SyncBatchNorm
from attvae.model.layers import make_norm

CHANNELS = 5
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6}
Result = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
"""Output, gradients of input, weight and bias, moving mean and variance."""


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two batches, weight and bias; the images of the ranks have other means and spreads."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, CHANNELS, 3, 4, generator=generator, dtype=dtype)
    x[:, :4] = 2 * x[:, :4] + 3
    weight, bias = torch.randn(2, CHANNELS, generator=generator, dtype=dtype)
    return x[0], x[1], weight, bias


def two_steps(norm: BatchNorm, part: slice, dtype: torch.dtype) -> Result:
    """Forward and backward twice: the second meets moving statistics that the first has changed."""
    first, second, weight, bias = inputs(dtype)
    norm.to(dtype)
    norm.weight.data, norm.bias.data = weight, bias
    norm(first[part])
    x = second[part].requires_grad_()
    y = norm(x)
    y.sin().sum().backward()
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    assert x.grad is not None
    return y.detach(), x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var


def expected(dtype: torch.dtype) -> Result:
    first, second, weight, bias = inputs(dtype)
    x, weight, bias = second.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()
    mean, var = torch.zeros(CHANNELS, dtype=dtype), torch.ones(CHANNELS, dtype=dtype)
    for batch in (first, x):
        y = F.batch_norm(batch, mean, var, weight, bias, training=True, momentum=0.1, eps=EPSILON)
    return y.detach(), *torch.autograd.grad(y.sin().sum(), (x, weight, bias)), mean, var


def on_a_rank(cut: int) -> list[list[np.ndarray]]:
    rendezvous.join()
    try:
        part = slice(cut, None) if torch.distributed.get_rank() else slice(cut)
        return [[t.numpy() for t in two_steps(SyncBatchNorm(CHANNELS), part, dtype)] for dtype in TOLERANCE]
    finally:
        rendezvous.leave()


def test_two_ranks_with_other_numbers_of_images_are_one_batch() -> None:
    ranks = run_on_ranks(on_a_rank, 2, 4)
    for i, (dtype, tolerance) in enumerate(TOLERANCE.items()):
        results = [[torch.from_numpy(array) for array in rank[i]] for rank in ranks]
        (y0, dx0, dw0, db0, *moving0), (y1, dx1, dw1, db1, *moving1) = results
        joined = (torch.cat([y0, y1]), torch.cat([dx0, dx1]), dw0 + dw1, db0 + db1, *moving0)
        for found, wanted in zip(joined, expected(dtype), strict=True):
            assert_close(found, wanted, rtol=tolerance, atol=tolerance)
        for a, b in zip(moving0, moving1, strict=True):
            assert torch.equal(a, b)


def test_one_rank_is_plain_batch_norm() -> None:
    norm = make_norm("sync_batch", CHANNELS)
    assert isinstance(norm, SyncBatchNorm)
    for found, wanted in zip(two_steps(norm, slice(None), torch.float32), expected(torch.float32), strict=True):
        assert torch.equal(found, wanted)
