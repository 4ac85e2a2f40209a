"""What the comparison of depth-wise attention measures, and how its figures are made."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from typer.testing import CliRunner

from attvae.bench import attention
from attvae.bench.attention import PUBLISHED, Seconds, made, measure_attention, ours, outputs, row, saved_bytes
from attvae.cli import app


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in {"BATCH": 2, "CHANNELS": 6, "KEY_CHANNELS": 3, "SIZE": 4}.items():
        monkeypatch.setattr(attention, name, size)


def test_figures_of_the_repeats() -> None:
    seconds = {
        "published": [Seconds(9.0, 6.0), Seconds(9.0, 8.0), Seconds(9.0, 9.0)],
        "ours": [Seconds(3.0, 2.0), Seconds(3.0, 2.0), Seconds(5.0, 3.0)],
        "forward": [Seconds(1.0, 0.5)] * 3,
        "floor": [Seconds(1.0, 0.25), Seconds(1.0, 0.5), Seconds(1.0, 0.4)],
    }
    found = row(16, seconds, 13_500_000)
    assert {name: found[name] for name in found if name not in ("spread", "wall_ms")} == {
        "layers": 16,
        "published_ms": 8000.0,
        "ours_ms": 2000.0,
        "speedup": 3.0,
        "forward_ms": 500.0,
        "floor_ms": 400.0,
        "forward_over_floor": 1.25,
        "saved_mb": 13.5,
    }
    assert found["spread"]["speedup"] == [3.0, 4.0]
    assert found["spread"]["ours_ms"] == [2000.0, 3000.0]
    assert found["wall_ms"] == {"published": 9000.0, "ours": 3000.0, "forward": 1000.0, "floor": 1000.0}


@pytest.mark.parametrize("channels_last", [False, True])
def test_each_layer_attends_to_all_earlier_ones(channels_last: bool) -> None:
    stack = made(4, channels_last)

    def by_torch(query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        return F.scaled_dot_product_attention(
            query.permute(0, 2, 3, 1)[..., None, :],
            torch.stack(keys).permute(1, 3, 4, 0, 2),
            torch.stack(values).permute(1, 3, 4, 0, 2),
            scale=1.0,
        )[..., 0, :].permute(0, 3, 1, 2)

    values, keys = [slot[:, :6] for slot in stack.slots], [slot[:, 6:] for slot in stack.slots]
    expected = [by_torch(stack.queries[n], keys[:n], values[:n]) for n in (1, 2, 3)]
    for form in (PUBLISHED, ours()):
        torch.testing.assert_close([*outputs(form, stack)], expected)
    assert stack.slots[0].is_contiguous() != channels_last


def test_ours_keeps_queries_and_probabilities_alone() -> None:
    stack = made(4, channels_last=False)
    query, probabilities = 2 * 3 * 16 * 4, 2 * 16 * 4
    assert saved_bytes(ours(), stack) == 3 * query + (1 + 2 + 3) * probabilities
    stacked = (1 + 2 + 3) * 2 * (6 + 3) * 16 * 4
    assert saved_bytes(PUBLISHED, stack) >= 3 * query + stacked + (1 + 2 + 3) * probabilities


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"layers=\[4, 1\]"):
        measure_attention([4, 1], 1)
    with pytest.raises(ValueError, match="repeats=0"):
        measure_attention([4], 0)


def test_table_and_document() -> None:
    command = ["bench", "attention", "--layers", "2", "--layers", "3", "--repeats", "1"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "times faster" in shown.stdout
    document = json.loads(CliRunner().invoke(app, [*command, "--channels-last", "--json"]).stdout)
    assert document["environment"]["torch"] == torch.__version__
    assert [each["layers"] for each in document["rows"]] == [2, 3]
    assert set(document["rows"][0]) >= {
        "published_ms", "ours_ms", "speedup", "forward_ms", "floor_ms", "forward_over_floor", "saved_mb",
    }  # fmt: skip
    assert "channels last" in document["setting"]["layout"]
