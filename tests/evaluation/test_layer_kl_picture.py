"""The bars of each layer's KL, by their pixels."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attvae.evaluation.chart import ALARM, BAR, SIZE, labelled
from attvae.evaluation.elbo import ElboFigures
from attvae.evaluation.layer_kl_picture import layer_kl_picture

LEFT, TOP, RIGHT, BOTTOM = 80, 44, 708, 332


def bars(kl: tuple[float, ...], folder: Path) -> list[tuple[int, int]]:
    """Pixels in the middle of each layer's place that have the colours of a bar, and of what is no number."""
    layer_kl_picture(ElboFigures(1.0, 1.0, kl, 1.0, 1), folder / "kl.png")
    with Image.open(folder / "kl.png") as picture:
        assert picture.size == SIZE
        pixels = np.asarray(picture)
    middles = [int(LEFT + (i + 0.3) * (RIGHT - LEFT) / len(kl)) for i in range(len(kl))]
    return [tuple(int((pixels[:, x] == colour).all(axis=1).sum()) for colour in (BAR, ALARM)) for x in middles]


def test_a_decade_is_a_seventh_of_the_height_at_every_step_of_every_run(tmp_path: Path) -> None:
    kl = (0.001, 0.01, 1.0, 31.6227766, 10_000.0)
    expected = [0, 1, 3, 4.5, 7]
    heights = [bar for bar, _ in bars(kl, tmp_path)]
    # The dashes of the threshold may hide a pixel of a bar.
    assert heights == pytest.approx([(BOTTOM - TOP) / 7 * decades for decades in expected], abs=1.6)
    deep = bars((*kl, *[0.5] * 59), tmp_path)
    assert [bar for bar, _ in deep[:5]] == pytest.approx(heights, abs=1.1), "whatever the depth"


def test_what_lies_beyond_the_scale_stays_within_it(tmp_path: Path) -> None:
    low, negative, zero, high = bars((1e-9, -1e-9, 0.0, 1e9), tmp_path)
    assert low == negative == zero == (0, 0)
    assert high[0] == pytest.approx(BOTTOM - TOP, abs=1)


def test_what_is_no_number_stands_out(tmp_path: Path) -> None:
    found = bars((1.0, math.nan, math.inf, 1.0), tmp_path)
    assert [alarm for _, alarm in found] == pytest.approx([0, BOTTOM - TOP, BOTTOM - TOP, 0], abs=1)
    assert found[0][0] == found[3][0] > 0


@pytest.mark.parametrize("count", [1, 2, 15, 16, 40, 64, 500])
def test_labels_do_not_overlap(count: int) -> None:
    step_px = 270 / count
    shown = labelled(count, step_px)
    assert shown[0] == 0
    assert len(shown) == 1 or (shown[1] - shown[0]) * step_px >= 30
    assert len(shown) >= min(count, 4), "enough of them"
