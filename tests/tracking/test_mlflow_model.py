"""The stored model, as MLflow's own client finds, loads and runs it, against the evaluation of the training."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
import safetensors.torch
import torch
from array_images import ArrayImages, array_dataset
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from stored_images import stored_images

from attvae import config, export
from attvae.data.manifest import Manifest
from attvae.engine.rendezvous import World
from attvae.evaluate import evaluation_of
from attvae.export import ExportConfig
from attvae.model.vae import DeepVAE
from attvae.tracking.mlflow_model import log_model, registration
from data_prep.writer import prepare

TINY = Path("configs/test/tiny.yaml")
RGB = ["model.likelihood={kind: logistic_mixture, num_mixtures: 2}"]


def trained(folder: Path, data: Path, *overrides: str) -> Path:
    """A run folder at the end of a training, as far as the model needs it."""
    cfg = config.load(TINY, [f"data.path={data}", *overrides])
    manifest = Manifest.read(data)
    torch.manual_seed(7)
    model = DeepVAE(cfg.model, manifest.spec).eval()
    folder.mkdir()
    stated = ExportConfig(model=model.config, spec=model.spec)
    export.write(folder / "model", model, stated, "a card\n")
    (folder / "config.yaml").write_text(cfg.to_yaml())
    figures = evaluation_of(model, cfg, manifest, World(0, 1, torch.device("cpu"))).of("test").elbo()
    (folder / "summary.json").write_text(json.dumps({"samples_seen": 2000, "test": figures._asdict()}))
    return folder


class Store:
    """MLflow's store, and one run in it."""

    def __init__(self, folder: Path, fresh: Path) -> None:
        folder.mkdir(exist_ok=True)
        shutil.copy(fresh, folder / "mlflow.db")
        self.artifacts = folder / "artifacts"
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.client = MlflowClient(self.uri)
        self.experiment = self.client.create_experiment("attvae", artifact_location=self.artifacts.as_uri())
        self.run_id = self.client.create_run(self.experiment).info.run_id

    def log(self, run_dir: Path, register: str | None = None) -> None:
        log_model(self.run_id, self.uri, run_dir, register)

    def models(self):
        return self.client.search_logged_models([self.experiment])

    def load(self, address: str) -> mlflow.pyfunc.PyFuncModel:
        mlflow.set_tracking_uri(self.uri)
        try:
            return mlflow.pyfunc.load_model(address)
        finally:
            mlflow.set_tracking_uri(None)

    def everything(self) -> tuple[object, ...]:
        """What the store holds, to see whether something changed."""
        files = {path: path.stat().st_mtime_ns for path in self.artifacts.rglob("*")}
        versions = [(v.name, v.version, v.aliases, v.tags) for v in self.client.search_model_versions("")]
        runs = [run.to_dictionary() for run in self.client.search_runs([self.experiment])]
        return files, versions, runs, [model.to_dictionary() for model in self.models()]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fresh") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(autouse=True)
def _no_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "run", digits)


@pytest.fixture
def store(tmp_path: Path, fresh: Path) -> Store:
    return Store(tmp_path / "store", fresh)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, fresh: Path, run: Path) -> Store:
    """A store that has the model; for tests that only read."""
    store = Store(tmp_path_factory.mktemp("stored"), fresh)
    store.log(run)
    return store


def images_of(dtype: type, channels: int) -> ArrayImages:
    rng = np.random.default_rng(3)
    return ArrayImages(rng.integers(0, np.iinfo(dtype).max, (12, 8, 8, channels), dtype, endpoint=True))


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 3), (np.uint16, 1)])
def test_the_mean_over_a_split_is_the_figure_of_the_run(
    tmp_path: Path, store: Store, dtype: type, channels: int
) -> None:
    top = int(np.iinfo(dtype).max)
    prepare(array_dataset(images_of(dtype, channels), max_value=top), tmp_path / "data")
    run = trained(tmp_path / "run", tmp_path / "data", *RGB)
    store.log(run)
    test = json.loads((run / "summary.json").read_text())["test"]
    figures = store.load(f"runs:/{store.run_id}/model").predict(stored_images(tmp_path / "data", "test"))
    assert figures["nelbo_nats"].mean() == pytest.approx(test["nelbo_nats"], rel=1e-5)
    assert figures["kl_nats"].mean(axis=0) == pytest.approx(test["kl_nats_per_layer"], rel=1e-5)


def test_binary_images_are_drawn_as_often_as_in_the_run(stored: Store, run: Path, digits: Path) -> None:
    model, images = stored.load(f"models:/{stored.models()[0].model_id}"), stored_images(digits, "test")
    test = json.loads((run / "summary.json").read_text())["test"]
    figures = model.predict(images)
    assert figures["nelbo_nats"].shape == figures["nll_nats"].shape == (297,)
    assert figures["kl_nats"].shape == (297, 3)
    assert figures["nelbo_nats"].mean() == pytest.approx(test["nelbo_nats"], rel=1e-5)
    assert figures["nll_nats"].mean() == pytest.approx(test["nll_nats"], rel=1e-5)
    assert figures["kl_nats"].mean(axis=0) == pytest.approx(test["kl_nats_per_layer"], rel=1e-5)
    assert figures["nelbo_nats"] == pytest.approx(figures["nll_nats"] + figures["kl_nats"].sum(axis=1))
    once = model.predict(images, params={"draws": 1})["nelbo_nats"]
    assert abs(once.mean() / test["nelbo_nats"] - 1) > 1e-4, "two draws were averaged"


def test_an_image_has_the_figures_of_its_place(stored: Store, digits: Path) -> None:
    model, images = stored.load(f"runs:/{stored.run_id}/model"), stored_images(digits, "test")[:150]
    whole = model.predict(images)["nelbo_nats"]
    parts = [model.predict(images[i : i + 60], params={"first_id": i})["nelbo_nats"] for i in (0, 60, 120)]
    assert np.concatenate(parts) == pytest.approx(whole, rel=1e-5)
    elsewhere = model.predict(images[60:120])["nelbo_nats"]
    assert abs(elsewhere / whole[60:120] - 1).min() < 1e-2 < abs(elsewhere / whole[60:120] - 1).max()
    assert model.predict(images[:0])["kl_nats"].shape == (0, 3)


def test_what_the_model_does_not_take(stored: Store, digits: Path) -> None:
    model, images = stored.load(f"runs:/{stored.run_id}/model"), stored_images(digits, "test")[:2]
    with pytest.raises(MlflowException, match="float32"):
        model.predict(images.astype(np.float32))
    with pytest.raises(MlflowException, match="shape"):
        model.predict(images[:, :, :4])
    with pytest.raises(ValueError, match="0 to 16, got 17"):
        model.predict(np.full_like(images, 17))
    with pytest.raises(ValueError, match="draws=0"):
        model.predict(images, params={"draws": 0})
    with pytest.raises(ValueError, match="first_id=-1"):
        model.predict(images, params={"first_id": -1})


def test_signature_example_and_requirements(stored: Store) -> None:
    model = stored.load(f"runs:/{stored.run_id}/model")
    signature = model.metadata.signature
    assert [(i.type, i.shape) for i in signature.inputs.inputs] == [(np.uint8, (-1, 8, 8, 1))]
    assert signature.outputs.input_names() == ["nelbo_nats", "nll_nats", "kl_nats"]
    assert {p.name: p.default for p in signature.params.params} == {"draws": 2, "first_id": 0}
    assert model.predict(model.input_example)["nelbo_nats"].shape == (1,)
    [folder] = stored.artifacts.glob("models/*/artifacts")
    required = (folder / "requirements.txt").read_text().split()
    assert {r.split("==")[0] for r in required} == {"mlflow", "torch", "safetensors", "numpy", "pydantic", "jaxtyping"}
    assert all("==" in r and "+" not in r for r in required)


def test_nothing_stored_is_a_pickle(stored: Store) -> None:
    files = {path.name: path.read_bytes() for path in stored.artifacts.rglob("*") if path.is_file()}
    assert files.keys() >= {"MLmodel", "model.safetensors", "model.json", "pyfunc_model.py"}
    assert "cloudpickle" not in files["MLmodel"].decode()
    safetensors.torch.load(files.pop("model.safetensors"))
    for name, content in files.items():
        assert "\0" not in content.decode("utf-8"), f"{name} is no text"


def test_the_run_goes_on_as_it_was(store: Store, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store.log(run)
    [found] = store.client.search_runs([store.experiment])
    assert found.info.status == "RUNNING"
    assert found.info.end_time is None
    assert (found.data.metrics, found.data.params) == ({}, {})
    assert [(output.model_id, output.step) for output in store.client.get_run(store.run_id).outputs.model_outputs] == [
        (store.models()[0].model_id, 2000)
    ]
    assert mlflow.active_run() is None
    assert "".join(capfd.readouterr()) == ""


def test_again_adds_nothing(store: Store, run: Path) -> None:
    store.log(run, "digits@champion")
    before = store.everything()
    store.log(run, "digits@champion")
    assert store.everything() == before


def test_what_was_begun_is_gone_on_with(store: Store, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise ConnectionError("the server is gone")

    for step in ("log_model_artifacts", "finalize_logged_model"):
        with monkeypatch.context() as broken:
            broken.setattr(MlflowClient, step, lost)
            with pytest.raises(ConnectionError):
                store.log(run)
        assert [model.status for model in store.models()] == ["PENDING"]
    store.log(run)
    [model] = store.models()
    assert model.status == "READY"
    assert len(store.client.get_run(store.run_id).outputs.model_outputs) == 1
    assert store.load(f"models:/{model.model_id}").metadata.run_id == store.run_id


def test_registered_once_under_its_alias(store: Store, run: Path) -> None:
    store.log(run)
    assert store.client.search_registered_models() == []
    store.log(run, "digits@champion")
    first, run_id = store.client.get_model_version_by_alias("digits", "champion"), store.run_id
    assert first.run_id == run_id
    assert store.load("models:/digits@champion").metadata.run_id == run_id
    store.run_id = store.client.create_run(store.experiment).info.run_id
    store.log(run, "digits@champion")
    second = store.client.get_model_version_by_alias("digits", "champion")
    assert second.run_id == store.run_id
    store.run_id = run_id
    store.log(run, "digits@champion")
    assert store.client.get_model_version_by_alias("digits", "champion").version == second.version
    assert {v.version for v in store.client.search_model_versions("")} == {first.version, second.version}


def test_registration_goes_on_where_it_was_cut_off(store: Store, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object) -> None:
        raise ConnectionError("the server is gone")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "set_registered_model_alias", lost)
        with pytest.raises(ConnectionError):
            store.log(run, "digits@champion")
    store.log(run, "digits@champion")
    [version] = store.client.search_model_versions("")
    assert store.client.get_model_version_by_alias("digits", "champion").version == version.version


@pytest.mark.parametrize("alias", ["champion", "best-2", "a_b", "ä", "latest", "v2", "V2", "two words", "a/b", ""])
def test_an_alias_is_what_mlflow_takes(stored: Store, alias: str) -> None:
    client = stored.client
    if not client.search_registered_models():
        client.create_registered_model("digits")
        client.create_model_version("digits", stored.artifacts.as_uri(), stored.run_id)
    try:
        client.set_registered_model_alias("digits", alias, "1")
    except MlflowException:
        with pytest.raises(ValueError, match="not name@alias"):
            registration(f"digits@{alias}")
    else:
        assert registration(f"digits@{alias}") == ("digits", alias)


@pytest.mark.parametrize("name", ["images 32x32", "größe", "a.b", "a/b", "a:b", ".", "..", " ", ""])
def test_a_name_is_what_mlflow_takes(stored: Store, name: str) -> None:
    try:
        stored.client.create_registered_model(name)
    except MlflowException:
        with pytest.raises(ValueError, match="not name@alias"):
            registration(f"{name}@champion")
    else:
        assert registration(f"{name}@champion") == (name, "champion")


@pytest.mark.parametrize("register", ["digits", "a@b@c"])
def test_bad_registration_is_named(register: str) -> None:
    with pytest.raises(ValueError, match="not name@alias, such as digits@champion"):
        registration(register)


def test_a_project_around_the_run_is_not_stored(
    store: Store, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("uv.lock", "pyproject.toml", ".python-version"):
        (tmp_path / name).write_text('[project]\nname = "planted"\nversion = "1"\n')
    monkeypatch.chdir(tmp_path)
    store.log(run)
    files = [path for path in store.artifacts.rglob("*") if path.is_file()]
    assert not any(b"planted" in path.read_bytes() for path in files)


def test_the_loader_needs_nothing_that_only_training_needs() -> None:
    heavy = ("deepspeed", "ray", "webdataset", "mlflow", "fsspec", "scipy")
    code = f"import sys, attvae.pyfunc_model; print(*[m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []
