"""What the comparison of optimizers measures, and how its figures are made."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from attvae.bench.optimizer import OURS, Seconds, contenders, measure_optimizers, rows
from attvae.cli import app
from attvae.config import load

ROOT = Path(__file__).parents[1]
TINY = ROOT / "configs" / "test" / "tiny.yaml"


def test_figures_of_the_repeats() -> None:
    torchs, ours = rows(
        {"torch": [Seconds(6.0, 2.0), Seconds(8.0, 3.0), Seconds(9.0, 2.0)], OURS: [Seconds(2.0, 1.0)] * 3}
    )
    assert torchs == {
        "optimizer": "torch",
        "wall_ms": {"median": 8000.0, "min": 6000.0, "max": 9000.0},
        "ours_is_faster_wall": {"median": 4.0, "min": 3.0, "max": 4.5},
        "cpu_ms": {"median": 2000.0, "min": 2000.0, "max": 3000.0},
        "ours_is_faster_cpu": {"median": 2.0, "min": 2.0, "max": 3.0},
    }
    assert ours["ours_is_faster_wall"] == {"median": 1.0, "min": 1.0, "max": 1.0}


def test_contenders_make_the_same_update() -> None:
    """A first update, from the same gradients, which all clip to half their norm."""
    start = torch.randn(50, generator=torch.Generator().manual_seed(0))
    moved = []
    for name in contenders([nn.Parameter(start.clone())])[0]:
        p = nn.Parameter(start.clone())
        p.grad = 1e4 * (start + 1)  # beside these, eps does not count
        contenders([p])[0][name]()
        moved.append(p.detach() - start)
    assert len(moved) == 6
    for found in moved:
        assert found.abs().min() > 0
        torch.testing.assert_close(found, moved[0], rtol=0, atol=1.3e-7)  # an ulp of the weights


def test_a_measurement(digits: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"base: {TINY}\ndata: {{path: {digits}}}\n")
    done = CliRunner().invoke(app, ["bench", "optimizer", "--config", str(config), "--repeats", "2", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["environment"]["torch"] == torch.__version__
    assert [row["optimizer"] for row in found["rows"]][-1] == OURS
    assert all(row["wall_ms"]["min"] > 0 for row in found["rows"])
    done = CliRunner().invoke(app, ["bench", "optimizer", "--config", str(config), "--repeats", "1"])
    assert f"An update of {found['parameters']:,} parameters" in done.stdout
    assert "torch for-loop, AveragedModel" in done.stdout


def test_nothing_to_repeat() -> None:
    with pytest.raises(ValueError, match="found repeats=0: expected at least 1"):
        measure_optimizers(load(TINY), 0)
