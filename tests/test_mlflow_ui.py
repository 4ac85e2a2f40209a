"""Two runs of different depth in MLflow's own pages, as a user opens them: found, compared, curve by curve and picture
by picture.

SCREENSHOTS=docs/images refreshes the documentation's pictures.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from browser import chromium, click, resize, screenshot, wait_for_script, without_mlflow_assistant
from launched import PLAIN, command, run
from mlflow_server import mlflow_server
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from attvae.tracking.jsonl import read

pytestmark = pytest.mark.browser

DEPTHS = {"shallow": 2, "deep": 4}
LENGTH = ["train.samples=10000", "train.log_every=1000", "eval.every=5000", "optim.ema_decay=0.9"]
CARD = (
    "[...document.querySelectorAll('[data-testid=experiment-view-compare-runs-card]')]"
    ".find((card) => card.querySelector('h4')?.title == arguments[0])"
)
# Each run's points in a chart. A run has two lines there: as it is, and smoothed (by nothing).
CURVES = f"""Object.fromEntries({CARD}.querySelector('.js-plotly-plot').data.map(
    (line) => [line.name, Array.from(line.x).map((x, index) => [x, line.y[index]])]
))"""
SEARCH = "document.querySelector('[data-testid=experiment-view-compare-runs-chart-area] input')"


class Store(NamedTuple):
    page: str
    """The address of the experiment's runs."""
    runs: dict[str, Path]

    def curves(self, metric: str) -> dict[str, list[list[float]]]:
        """[samples seen, value] of each run that has the metric, by its journal."""
        points = {
            name: [[row["samples_seen"], row[metric]] for row in read(out / "metrics.jsonl") if metric in row]
            for name, out in self.runs.items()
        }
        return {name: found for name, found in points.items() if found}


@pytest.fixture(scope="module")
def store(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("ui")
    with mlflow_server(folder) as server:
        runs = {name: folder / name for name in DEPTHS}
        for name, out in runs.items():
            tracking = ["tracking.mlflow=true", f"tracking.uri={server.uri}"]
            overrides = [PLAIN, *tracking, f"model.num_layers={DEPTHS[name]}", *LENGTH]
            run(command(digits, out, *overrides), NO_PROXY="127.0.0.1")
        yield Store(f"{server.uri}/#/experiments/1/runs", runs)


@pytest.fixture
def window() -> Iterator[webdriver.Chrome]:
    with chromium(1400, 900) as window:
        without_mlflow_assistant(window)
        yield window


def test_both_runs_are_found_and_compared(store: Store, window: webdriver.Chrome, tmp_path: Path) -> None:
    window.get(store.page)
    links = "[...document.querySelectorAll('.ag-row a[href*=\"/runs/\"]')]"
    wait_for_script(window, f"{links}.map((link) => link.innerText).join(' ') == 'deep shallow'")
    for number in range(2):
        click(window, "document.querySelectorAll('.ag-row input.ag-checkbox-input')[arguments[0]]", number)
    compare = "document.querySelector('[data-testid=runs-compare-button]:enabled')"
    wait_for_script(window, compare)
    screenshot(window, "mlflow_runs", tmp_path)
    click(window, compare)
    wait_for_script(window, "document.body.innerText.includes('Comparing 2 Runs from 1 Experiment')")
    wait_for_script(window, r"/^model\.num_layers\s+4\s+2$/m.test(document.body.innerText)")
    link = wait_for_script(window, "document.querySelector('a[href*=\"#/metric?\"]')")
    metric = link.text
    window.execute_script("arguments[0].click()", link)  # far below
    assert wait_for_script(window, CURVES, metric) == store.curves(metric)


def test_the_curves_have_every_point_of_the_journals(store: Store, window: webdriver.Chrome, tmp_path: Path) -> None:
    window.get(f"{store.page}?compareRunsMode=CHART")
    search = wait_for_script(window, SEARCH)
    for metric, points in {"val/nelbo_nats": 2, "train/nelbo_nats": 10}.items():
        search.send_keys(Keys.CONTROL, "a")
        search.send_keys(metric)
        shown = wait_for_script(window, CURVES, metric)
        assert shown == store.curves(metric)
        assert [len(curve) for curve in shown.values()] == [points, points]
    search.send_keys(Keys.CONTROL, "a")
    search.send_keys("train/")
    wait_for_script(window, "document.querySelectorAll('.js-plotly-plot .scatterlayer .trace').length > 11")
    screenshot(window, "mlflow_compare", tmp_path)


def test_the_pictures_of_both_runs_stand_in_one_grid(store: Store, window: webdriver.Chrome, tmp_path: Path) -> None:
    files = {name: sorted(path.stem for path in out.glob("images/*.png")) for name, out in store.runs.items()}
    newest = [re.fullmatch(r"(\w+)-0*(\d+)", stem) for stem in files["deep"]]
    step = max(int(match[2]) for match in newest if match)
    names = {match[1] for match in newest if match and int(match[2]) == step}
    assert names >= {"samples", "reconstructions"}
    assert files["deep"] == files["shallow"]

    window.get(f"{store.page}?compareRunsMode=CHART")
    wait_for_script(window, SEARCH).send_keys("no such metric")
    click(window, f"{CARD}.querySelector('[data-testid=experiment-view-compare-runs-card-menu]')", "samples")
    click(window, "[...document.querySelectorAll('[role=menuitem]')].find((item) => item.innerText == 'Configure')")
    click(window, "document.querySelector('[role=dialog] [role=switch][aria-checked=true]')")  # Show run parameters
    click(window, "document.querySelector('[role=dialog] [role=combobox]')")
    for name in sorted(names - {"samples"}):
        option = "[...document.querySelectorAll('[role=option]')].find((option) => option.innerText == arguments[0])"
        click(window, option, name)
    window.switch_to.active_element.send_keys(Keys.ESCAPE)
    field = window.find_element(By.CSS_SELECTOR, "[role=dialog] input[type=number]")
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(str(step), Keys.ENTER)
    click(window, "document.querySelector('[data-testid=experiment-view-compare-runs-chart-modal-confirm]')")
    wait_for_script(window, "!document.querySelector('[role=dialog]')")

    click(window, f"{CARD}.querySelector('[data-component-id=fullscreen_button_chartcard]')", "Image grid")
    images = "[...document.querySelectorAll('[role=dialog] img')]"
    wait_for_script(window, f"{images}.length >= arguments[0]", len(names) * len(store.runs))
    wait_for_script(window, f"{images}.every((image) => image.naturalWidth)")
    sources = window.execute_script(f"return {images}.map((image) => decodeURIComponent(image.src))")
    cells = [re.search(r"/(\w+)\+step\+(\d+)\+.+&run_uuid=(\w+)$", source) for source in sources]
    run_ids = [json.loads((out / "mlflow.json").read_text())["run_id"] for out in store.runs.values()]
    expected = sorted((name, str(step), run_id) for name in names for run_id in run_ids)
    assert sorted(cell.groups() for cell in cells if cell) == expected
    resize(window, 900, 1500)
    wait_for_script(window, f"{images}.every((image) => image.width < 300)")
    screenshot(window, "mlflow_images", tmp_path)
