import pytest
from golden.arrays import arrays, assert_close, nchw, weights

from attvae.model.config import NonLocalConfig, StackConfig
from attvae.model.official import canonical_names, load_weights
from attvae.model.residual_cell import ResidualCell

NON_LOCAL = StackConfig(non_local=NonLocalConfig(key_dim=4))
CASES = {
    "scale+0": (0, StackConfig()),
    "scale-2": (-2, StackConfig()),
    "scale+2": (2, StackConfig()),
    "scale+0.nonlocal": (0, NON_LOCAL),
    "scale-2.nonlocal": (-2, NON_LOCAL),
    "scale+2.nonlocal": (2, NON_LOCAL),
    "scale+0.se": (0, StackConfig(squeeze_excite=True)),
}


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    scale, config = CASES[case]
    unit = arrays("units", f"resblock.{case}.")
    cell = ResidualCell(8, scale, config, norm="batch")
    load_weights(cell, weights(unit))
    x = nchw(unit["input"])

    cell.eval()
    assert_close(cell(x).detach(), unit["output_eval"])
    if scale:
        assert_close(cell.shortcut(x).detach(), unit["shortcut_output"])

    cell.train()
    assert_close(cell(x).detach(), unit["output_train"])
    names = canonical_names(cell)
    buffers = {names[name]: buffer for name, buffer in cell.named_buffers()}
    assert len(buffers) == 4
    for name, buffer in buffers.items():
        assert_close(buffer, unit[f"after_train.w.{name}"])
