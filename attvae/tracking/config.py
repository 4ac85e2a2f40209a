"""Where MLflow keeps the runs."""

import os
import shutil
import sys
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator

from attvae.spec import Config
from attvae.tracking.secrets import without_secrets

_VARIABLES = ("MLFLOW_TRACKING_", "MLFLOW_EXPERIMENT_NAME")


def mlflow_variables() -> dict[str, str]:
    """Those of this process's environment that say where MLflow is, and who may write: for processes elsewhere."""
    return {name: value for name, value in os.environ.items() if name.startswith(_VARIABLES)}


class TrackingConfig(Config):
    """MLflow's store. The journal and the terminal need no settings.

    `artifacts` is used for stores that this process writes itself; an MLflow server has its own place for them.
    """

    mlflow: bool = Field(True, description="whether MLflow gets the run")
    uri: str = Field("sqlite:///runs/mlflow.db", description="its store or server; MLFLOW_TRACKING_URI wins")
    artifacts: str = Field("runs/mlartifacts", description="folder of the files, for a store that is no server")
    experiment: str = Field("attvae", description="under which the run appears; MLFLOW_EXPERIMENT_NAME wins")
    run_name: str | None = Field(None, description="in MLflow; null: the run folder's")
    tags: dict[str, str] = Field({}, description="set on the run beside its own")
    register_as: str | None = Field(
        None, description="name@alias: the trained model becomes a version of a registered model and gets the alias"
    )

    @field_validator("register_as")
    @classmethod
    def _is_name_and_alias(cls, value: str | None) -> str | None:
        if value is not None:
            from attvae.tracking.mlflow_model import registration

            registration(value)
        return value

    def with_environment(self) -> Self:
        """MLflow's own variables win: MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME."""
        wins = {
            "uri": os.environ.get("MLFLOW_TRACKING_URI"),
            "experiment": os.environ.get("MLFLOW_EXPERIMENT_NAME"),
        }
        return self.model_copy(update={key: value for key, value in wins.items() if value})

    @property
    def on_server(self) -> bool:
        return self.uri.startswith(("http://", "https://"))

    def ui_command(self) -> str:
        """The one line that shows the runs: a shell command, or the address of the server."""
        config = self.with_environment()
        uri = without_secrets(config.uri)
        # Next to the running python, unless the shell finds it by itself.
        mlflow = "mlflow" if shutil.which("mlflow") else str(Path(sys.executable).with_name("mlflow"))
        return uri if config.on_server else f"{mlflow} ui --backend-store-uri {uri}"
