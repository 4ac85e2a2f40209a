"""The report of a run in a real browser, wide and narrow, light and dark.

SCREENSHOTS=docs/images refreshes the documentation's picture.
"""

from itertools import product
from pathlib import Path
from typing import Literal

import pytest
from browser import chromium, errors, screenshot
from launched import PLAIN, command, run

pytestmark = pytest.mark.browser

LENGTH = [
    "train.samples=10000",
    "train.log_every=500",
    "eval.every=1000",
    "optim.ema_decay=0.9",
    "train.kl_warmup=10000",
]


@pytest.fixture(scope="module")
def page(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the end of a run, of a model with non-local blocks."""
    out = tmp_path_factory.mktemp("report") / "digits"
    non_local = "model.decoder.non_local={key_dim: 4}"
    run(command(digits, out, PLAIN, "model.num_layers=4", non_local, *LENGTH))
    return out / "report.html"


@pytest.mark.parametrize(("width", "scheme"), list(product([1280, 390], ["light", "dark"])))
def test_the_page_is_readable(page: Path, width: int, scheme: Literal["light", "dark"]) -> None:
    with chromium(width, 1000, scheme) as window:
        window.get(page.as_uri())
        assert window.execute_script("return innerWidth") == width
        for _ in range(2):
            assert window.execute_script("return document.documentElement.scrollWidth - innerWidth") <= 0
            window.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        sizes = window.execute_script(
            "return [...document.images].map((image) => [image.alt, image.naturalWidth, image.naturalHeight,"
            " image.width / image.height])"
        )
        assert len(sizes) == 11
        for alt, natural_width, natural_height, ratio in sizes:
            assert natural_width > 0, alt
            assert ratio == pytest.approx(natural_width / natural_height, rel=0.01), alt
        assert errors(window) == []
        fetched = window.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert [name for name in fetched if not name.startswith("data:")] == []
        red, green, blue = window.execute_script(
            "return getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).slice(0, 3).map(Number)"
        )
        assert (red + green + blue < 3 * 64) == (scheme == "dark")


def test_what_is_too_wide_scrolls_by_itself(page: Path) -> None:
    with chromium(390, 1000) as window:
        window.get(page.as_uri())
        window.execute_script("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        scrolled = window.execute_script(
            "return [...document.querySelectorAll('.wide')].filter((part) => part.scrollWidth > part.clientWidth)"
            ".map((part) => { part.focus(); part.scrollLeft = 50;"
            " return part.scrollLeft > 0 && document.activeElement === part; })"
        )
        assert len(scrolled) > 5
        assert all(scrolled)


def test_screenshot(page: Path, tmp_path: Path) -> None:
    with chromium(1280, 1400) as window:
        window.get(page.as_uri())
        screenshot(window, "report", tmp_path)
