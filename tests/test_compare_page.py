"""The page of `attvae compare` in a real browser: two runs of different depth, wide and narrow, light and dark.

SCREENSHOTS=docs/images refreshes the documentation's pictures.
"""

import os
import subprocess
import sys
from itertools import product
from math import isfinite
from pathlib import Path
from typing import Literal, NamedTuple

import pytest
from browser import chromium, errors, screenshot
from launched import PLAIN, REPOSITORY, command, run
from selenium import webdriver

from attvae.tracking.jsonl import read

pytestmark = pytest.mark.browser

DEPTHS = {"shallow": 2, "deep": 4}
LENGTH = [PLAIN, "train.samples=10000", "train.log_every=1000", "eval.every=5000", "optim.ema_decay=0.9"]
# metric, run: the number of points that the browser has read, of all the stretches of that curve.
POINTS = """
const points = {};
for (const line of document.querySelectorAll(`svg[data-metric][data-by=${arguments[0]}] polyline[data-run]`)) {
    const curve = `${line.closest('svg').dataset.metric} ${line.dataset.run}`;
    points[curve] = (points[curve] || 0) + line.points.numberOfItems;
}
return points;
"""


class Comparison(NamedTuple):
    runs: dict[str, Path]
    page: Path


@pytest.fixture(scope="module")
def comparison(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("compare")
    runs = {name: folder / name for name in DEPTHS}
    for name, out in runs.items():
        run(command(digits, out, f"model.num_layers={DEPTHS[name]}", *LENGTH))
    asked = [sys.executable, "-m", "attvae.cli", "compare", *runs, "--out", "compare.html"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(asked, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return Comparison(runs, folder / "compare.html")


def scroll_bar(window: webdriver.Chrome) -> int:
    """By how many pixels the page is wider than the window."""
    return int(window.execute_script("const page = document.documentElement; return page.scrollWidth - innerWidth"))


@pytest.mark.parametrize(("width", "scheme"), list(product([1280, 390], ["light", "dark"])))
def test_the_page_is_readable(
    comparison: Comparison, width: int, scheme: Literal["light", "dark"], tmp_path: Path
) -> None:
    with chromium(width, 1000, scheme) as window:
        window.get(comparison.page.as_uri())
        assert window.execute_script("return innerWidth") == width
        assert scroll_bar(window) <= 0
        window.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        assert scroll_bar(window) <= 0
        assert errors(window) == []
        fetched = window.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert [name for name in fetched if not name.startswith("data:")] == []
        red, green, blue = window.execute_script(
            "return getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).slice(0, 3).map(Number)"
        )
        assert (red + green + blue < 3 * 64) == (scheme == "dark")


@pytest.mark.parametrize(
    ("name", "section", "scheme"), [("compare", "runs", "light"), ("compare_dark", "curves", "dark")]
)
def test_screenshots(
    comparison: Comparison, name: str, section: str, scheme: Literal["light", "dark"], tmp_path: Path
) -> None:
    with chromium(1280, 1000, scheme) as window:
        window.get(comparison.page.as_uri())
        window.execute_script(f"document.getElementById('{section}').scrollIntoView()")
        screenshot(window, name, tmp_path)


def test_every_row_of_the_journals_is_a_point(comparison: Comparison) -> None:
    expected: dict[str, int] = {}
    for name, out in comparison.runs.items():
        for row in read(out / "metrics.jsonl"):
            for metric, value in row.items():
                if metric not in ("samples_seen", "time") and not metric.startswith("test/") and isfinite(value):
                    expected[f"{metric} {name}"] = expected.get(f"{metric} {name}", 0) + 1
    assert expected["train/nelbo_nats deep"] == 10
    assert "kl/layer_03 deep" in expected
    assert "kl/layer_03 shallow" not in expected
    with chromium(1280, 1000) as window:
        window.get(comparison.page.as_uri())
        for by in ("samples", "time"):
            assert window.execute_script(POINTS, by) == expected


def test_the_newest_pictures_of_all_runs_are_there(comparison: Comparison) -> None:
    expected = {
        (name, path.stem.rpartition("-")[0], 10000)
        for name, out in comparison.runs.items()
        for path in out.glob("images/*-000000010000.png")
    }
    assert len(expected) >= 4
    with chromium(1280, 1000) as window:
        window.get(comparison.page.as_uri())
        loaded = window.execute_script(
            "return [...document.querySelectorAll('img[data-picture]')].filter((image) => image.naturalWidth > 0)"
            ".map((image) => [image.dataset.run, image.dataset.picture, Number(image.dataset.step)])"
        )
    assert sorted(map(tuple, loaded)) == sorted(expected)


def test_the_curves_change_between_samples_and_time(comparison: Comparison) -> None:
    shown = (
        "return [...document.querySelectorAll('svg[data-metric=\"val/nelbo_nats\"]')]"
        ".filter((chart) => chart.getClientRects().length).map((chart) => chart.dataset.by)"
    )
    with chromium(1280, 1000) as window:
        window.get(comparison.page.as_uri())
        assert window.execute_script(shown) == ["samples"]
        window.execute_script("document.querySelector('#by-time').click()")
        assert window.execute_script(shown) == ["time"]
