"""What the comparison of ways to sample measures, and how its figures are made."""

import json

import pytest
import torch
from typer.testing import CliRunner

from attvae.bench.sampling import OURS, STACKED, UNCACHED, Seconds, made, measure_sampling, row, ways
from attvae.cli import app


def test_figures_of_the_repeats() -> None:
    found = row(
        {
            OURS: [Seconds(2.0, 1.0), Seconds(4.0, 2.0), Seconds(2.0, 1.0)],
            STACKED: [Seconds(4.0, 2.0)] * 3,
            UNCACHED: [Seconds(8.0, 3.0), Seconds(8.0, 4.0), Seconds(8.0, 5.0)],
        },
        images=8,
    )
    assert found["images_per_wall_s"][OURS] == {"median": 4.0, "min": 2.0, "max": 4.0}
    assert found["images_per_cpu_s"][STACKED] == {"median": 4.0, "min": 4.0, "max": 4.0}
    assert found["speedup_wall"][UNCACHED] == {"median": 4.0, "min": 2.0, "max": 4.0}
    assert found["speedup_cpu"][UNCACHED] == {"median": 3.0, "min": 2.0, "max": 5.0}
    assert OURS not in found["speedup_cpu"]


def test_all_ways_give_the_same() -> None:
    model = made(4)
    noise = [torch.randn(2, *shape) for shape in model.latent_shapes]
    ours, *others = (head_of(noise) for head_of in ways(model).values())
    for other in others:
        torch.testing.assert_close(other, ours, rtol=1e-3, atol=1e-4)
    with model.without_depth_attention():  # so they do attend
        assert (ways(model)[OURS](noise) - ours).abs().max() > 1e-2


def test_a_measurement() -> None:
    done = CliRunner().invoke(
        app, ["bench", "sampling", "--layers", "3", "--images", "2", "--repeats", "2", "--json"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["environment"]["torch"] == torch.__version__
    (measured,) = found["rows"]
    assert measured["layers"] == 3
    assert measured["images_per_cpu_s"][OURS]["min"] > 0
    assert measured["peak_memory_gb_of_4_times_as_many"] >= measured["peak_memory_gb"] > 0.1


@pytest.mark.parametrize("settings", [([1], 1, 1), ([2], 0, 1), ([2], 1, 0), ([], 1, 1)])
def test_settings_that_cannot_be_measured(settings: tuple[list[int], int, int]) -> None:
    with pytest.raises(ValueError, match="expected at least 2 layers"):
        measure_sampling(*settings)
