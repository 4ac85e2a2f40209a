"""The trained model in MLflow: stored beside its run as a pyfunc, and registered."""

import json
import os
import re
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from packaging.version import Version

from attvae.spec import DataSpec
from attvae.tracking.mlflow_store import connect

NAME = "model"
"""`runs:/<run id>/model` is the model of a run."""

_LOADER = "attvae.pyfunc_model"
_REQUIREMENTS = ("torch", "safetensors", "numpy", "pydantic", "jaxtyping")  # what the loader imports
_ALIAS_GIVEN = "attvae.alias"


def log_model(run_id: str, uri: str, run_dir: Path, register: str | None) -> None:
    """Stores the model of a finished run folder, once: what has arrived is not sent again.

    It does not touch the run's status, and starts no other run. Nothing stored is a pickle: MLflow gets the export
    folder and the sources of this package, whose `pyfunc_model` loads it.

    Args:
        run_id: the run in MLflow.
        uri: MLflow's store.
        run_dir: with model/, config.yaml and summary.json.
        register: also make it a version of the registered model `name`, under the alias: "name@alias".

    Raises:
        ValueError: `register` is not name@alias.
        Exception: what MLflow raises.
    """
    wanted = registration(register) if register is not None else None
    client = connect(uri)
    model = _of_run(client, run_id)
    if model.status != "READY":
        _send(client, model, run_id, run_dir)
    if wanted is not None:
        _register(client, model, run_id, *wanted)


def registration(register: str) -> tuple[str, str]:
    """Name and alias of "name@alias".

    Raises:
        ValueError: it is not of that form, or MLflow forbids the name or the alias.
    """
    name, _, alias = register.rpartition("@")
    # MLflow's own rules; besides, @ stands between name and alias in its addresses.
    reserved = re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE)
    if reserved or not re.fullmatch(r"[\w-]{1,255}", alias) or not re.fullmatch(r"[^/:@]{1,256}", name.strip(" .")):
        raise ValueError(
            f"{register!r} is not name@alias, such as digits@champion: the name without / : @, the alias of letters, "
            "digits, - and _, neither latest nor v1, v2, ..."
        )
    return name, alias


def _of_run(client: Any, run_id: str) -> Any:
    """The run's model in MLflow: stored, begun by an earlier call that did not come to its end, or new."""
    experiment_id = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment_id], f"name = '{NAME}' AND source_run_id = '{run_id}'")
    return found[0] if found else client.create_logged_model(experiment_id, name=NAME, source_run_id=run_id)


def _send(client: Any, model: Any, run_id: str, run_dir: Path) -> None:
    import mlflow
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    # Left to itself, MLflow adds the uv project that the process happens to run in.
    os.environ["MLFLOW_LOG_UV_FILES"] = "false"
    with tempfile.TemporaryDirectory() as folder:
        mlflow.pyfunc.save_model(
            f"{folder}/{NAME}",
            mlflow_model=Model(
                artifact_path=model.artifact_location, run_id=run_id, model_uuid=model.model_id, model_id=model.model_id
            ),
            loader_module=_LOADER,
            data_path=str(run_dir / "model"),
            code_paths=[str(Path(__file__).parents[1])],
            # A local build, such as 2.13.0+cpu, is in no index.
            pip_requirements=[f"{name}=={Version(version(name)).public}" for name in _REQUIREMENTS],
            **_signature(run_dir),
        )
        client.log_model_artifacts(model.model_id, f"{folder}/{NAME}")
    outputs = client.get_run(run_id).outputs
    if outputs is None or model.model_id not in {output.model_id for output in outputs.model_outputs}:
        samples_seen = json.loads((run_dir / "summary.json").read_text())["samples_seen"]
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=samples_seen)])
    client.finalize_logged_model(model.model_id, "READY")


def _signature(run_dir: Path) -> dict[str, Any]:
    """What the model takes and gives, and an example of it: a black image."""
    from mlflow.models import ModelSignature
    from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

    about = json.loads((run_dir / "model" / "model.json").read_text())
    spec, layers = DataSpec.model_validate(about["spec"]), about["model"]["num_layers"]
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    draws = config["evaluate"]["binarisations"] if spec.binary else 1
    pixels = np.dtype(np.uint8 if spec.num_bits <= 8 else np.uint16)
    image = (spec.height, spec.width, spec.channels)
    figures = {"nelbo_nats": (-1,), "nll_nats": (-1,), "kl_nats": (-1, layers)}
    return {
        "signature": ModelSignature(
            inputs=Schema([TensorSpec(pixels, (-1, *image))]),
            outputs=Schema([TensorSpec(np.dtype(np.float64), shape, name) for name, shape in figures.items()]),
            params=ParamSchema([ParamSpec("draws", "long", draws), ParamSpec("first_id", "long", 0)]),
        ),
        "input_example": np.zeros((1, *image), pixels),
    }


def _register(client: Any, model: Any, run_id: str, name: str, alias: str) -> None:
    """A version of `name` for the model, once; the alias is given once, since users move it later."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = [found for found in client.search_model_versions(f"run_id = '{run_id}'") if found.name == name]
    # Not `models:/<id>`: where the store is a database of ours, MLflow would look that up in its default store.
    registered = (
        known[0]
        if known
        else client.create_model_version(name, model.artifact_location, run_id, model_id=model.model_id)
    )
    if _ALIAS_GIVEN not in registered.tags:
        client.set_registered_model_alias(name, alias, registered.version)
        client.set_model_version_tag(name, registered.version, _ALIAS_GIVEN, alias)
