import pytest
from golden.arrays import arrays, assert_close, nchw, weights

from attvae.model.config import NonLocalConfig
from attvae.model.nonlocal_block import NonLocalBlock
from attvae.model.official import load_weights

VARIANTS = {
    "plain": NonLocalConfig(key_dim=4),
    "layer_norm": NonLocalConfig(key_dim=4, layer_norm=True),
    "subsample": NonLocalConfig(key_dim=4, subsample=True),
    "noscale": NonLocalConfig(key_dim=4, learned_scale=False),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden(variant: str) -> None:
    unit = arrays("units", f"nonlocal.{variant}.")
    block = NonLocalBlock(8, VARIANTS[variant])
    load_weights(block, weights(unit))
    assert_close(block(nchw(unit["input"])).detach(), unit["output"])
