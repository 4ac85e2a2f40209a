"""A sweep in MLflow's own pages: its trials stand below it, and unfold.

SCREENSHOTS=docs/images refreshes the documentation's picture.
"""

import json
from pathlib import Path

import pytest
from browser import chromium, click, screenshot, wait_for_script, without_mlflow_assistant
from mlflow import MlflowClient
from mlflow_server import mlflow_server
from sweeps import run, search_file, trials

pytestmark = pytest.mark.browser

ROWS = "[...document.querySelectorAll('.ag-row a[href*=\"/runs/\"]')]"


def test_the_trials_unfold_below_their_sweep(digits: Path, tmp_path: Path) -> None:
    with mlflow_server(tmp_path) as server, chromium(1400, 900) as window:
        without_mlflow_assistant(window)
        overrides = {"data.path": str(digits), "tracking.uri": server.uri}
        search = search_file(tmp_path / "sweep", digits, overrides=overrides, trials=2, samples=1000)
        run(search, NO_PROXY="127.0.0.1")
        client = MlflowClient(server.uri)
        parent = json.loads((tmp_path / "sweep/out/mlflow.json").read_text())["run_id"]
        experiment = client.get_run(parent).info.experiment_id
        window.get(f"{server.uri}/#/experiments/{experiment}/runs")
        assert wait_for_script(window, f"{ROWS}.map((link) => link.innerText)") == ["tiny"]
        click(window, "document.querySelector('.ag-row [col-id*=\"Run Name\"] button')")
        names = wait_for_script(window, f"{ROWS}.length == 3 && {ROWS}.map((link) => link.innerText)")
        assert sorted(names) == ["tiny", *(f"tiny {trial}" for trial in sorted(trials(search)))]
        screenshot(window, "mlflow_sweep", tmp_path)
