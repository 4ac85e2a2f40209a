import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden.arrays import arrays, assert_close, nchw

from attvae.kernels.depth_attention.reference import attention_weights, depth_attention


@pytest.mark.parametrize("case", ["a", "b_scale0.7", "c_n1", "d_batch1"])
def test_golden(case: str) -> None:
    unit = arrays("units", f"depthwise_attention.{case}.")
    keys, values = ([nchw(slot) for slot in np.moveaxis(unit[name], 1, 0)] for name in ("keys", "values"))
    assert_close(depth_attention(nchw(unit["query"]), keys, values, float(unit["scale"])), unit["output"])


def test_output_and_gradients_are_those_of_torch_attention() -> None:
    torch.manual_seed(0)
    b, n, k, c, h, w = 2, 5, 3, 7, 4, 5
    query = torch.randn(b, k, h, w, dtype=torch.double, requires_grad=True)
    keys = torch.randn(n, b, k, h, w, dtype=torch.double, requires_grad=True)
    values = torch.randn(n, b, c, h, w, dtype=torch.double, requires_grad=True)
    upstream = torch.randn(b, c, h, w, dtype=torch.double)
    inputs = (query, keys, values)

    found = depth_attention(query, list(keys), list(values))
    expected = F.scaled_dot_product_attention(
        query.permute(0, 2, 3, 1)[..., None, :],
        keys.permute(1, 3, 4, 0, 2),
        values.permute(1, 3, 4, 0, 2),
        scale=1.0,
    )[..., 0, :].permute(0, 3, 1, 2)

    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_weights_sum_to_one() -> None:
    weights = attention_weights(torch.randn(2, 3, 4, 4), [torch.randn(2, 3, 4, 4) for _ in range(6)])
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(2, 4, 4))


def test_a_missing_value_is_an_error() -> None:
    maps = torch.zeros(1, 2, 3, 3)
    with pytest.raises(ValueError, match="2 and 1"):
        depth_attention(maps, [maps, maps], [maps])
