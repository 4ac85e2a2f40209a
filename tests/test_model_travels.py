"""The model of a real training, loaded from a real MLflow server where attvae is not installed."""

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
from clean_environment import CleanEnvironment
from launched import PLAIN, command, run
from mlflow import MlflowClient
from mlflow_server import Server
from stored_images import stored_images

LOAD = """
import importlib.util, json, sys
for name in ("deepspeed", "ray", "webdataset", "typer", "attvae"):
    assert importlib.util.find_spec(name) is None, name
import mlflow, numpy
images, address = sys.argv[1:]
model = mlflow.pyfunc.load_model(address)
figures = model.predict(numpy.load(images))
import attvae
print(json.dumps({name: value.mean(axis=0).tolist() for name, value in figures.items()} | {"code": attvae.__file__}))
"""


@pytest.mark.slow
def test_the_model_scores_as_the_training_did_where_attvae_is_not_installed(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, server = tmp_path / "run", Server(tmp_path)
    server.start()
    try:
        tracking = [f"tracking.uri={server.uri}", "tracking.mlflow=true", "tracking.register_as=digits@champion"]
        run(command(digits, out, PLAIN, *tracking))
        client = MlflowClient(server.uri)
        run_id = json.loads((out / "mlflow.json").read_text())["run_id"]
        assert client.get_run(run_id).info.status == "FINISHED"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        required = mlflow.artifacts.load_text(f"runs:/{run_id}/model/requirements.txt")
        clean = CleanEnvironment(tmp_path / "clean", required.split())
        np.save(tmp_path / "images.npy", stored_images(digits, "test"))
        test = json.loads((out / "summary.json").read_text())["test"]
        assert (test["images"], test["draws"]) == (297, 2)
        for address in ("models:/digits@champion", f"runs:/{run_id}/model"):
            figures = json.loads(clean.run(LOAD, "images.npy", address, cwd=tmp_path, MLFLOW_TRACKING_URI=server.uri))
            assert Path(figures["code"]).parts[-3:] == ("code", "attvae", "__init__.py")
            assert figures["nelbo_nats"] == pytest.approx(test["nelbo_nats"], rel=1e-5)
            assert figures["nll_nats"] == pytest.approx(test["nll_nats"], rel=1e-5)
            assert figures["kl_nats"] == pytest.approx(test["kl_nats_per_layer"], rel=1e-5)
    finally:
        server.kill()
