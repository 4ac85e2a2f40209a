import pytest
from golden.arrays import arrays, assert_close, nchw, weights

from attvae.model.conv_node import ConvNode, data_head, first_posterior_head, posterior_head, prior_head
from attvae.model.merge import ConcatMerge, SumMerge
from attvae.model.official import load_weights

HEADS = {
    "prior": prior_head(6, 5),
    "posterior": posterior_head(6, 5),
    "init_posterior": first_posterior_head(6, 5),
    "data": data_head(6, 10),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_golden(name: str) -> None:
    unit = arrays("units", f"head.{name}.")
    head: ConvNode = HEADS[name]
    load_weights(head, weights(unit))
    assert_close(head(nchw(unit["input"])).detach(), unit["output"])


def test_concat_merge_golden() -> None:
    unit = arrays("units", "concat_conv2d.")
    merge = ConcatMerge(6, 5, 7, non_local=None)
    load_weights(merge, weights(unit))
    assert_close(merge(nchw(unit["a"]), nchw(unit["b"])).detach(), unit["output"])


@pytest.mark.parametrize(("case", "out_channels"), [("other_width", 9), ("same_width", 6)])
def test_sum_merge_golden(case: str, out_channels: int) -> None:
    unit = arrays("units", f"conv2d_sum.{case}.")
    merge = SumMerge(6, 5, out_channels, non_local=None)
    load_weights(merge, weights(unit))
    assert_close(merge(nchw(unit["a"]), nchw(unit["b"])).detach(), unit["output"])
