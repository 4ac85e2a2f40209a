import pytest
from pydantic import ValidationError

from attvae.tracking.config import TrackingConfig


def test_the_line_that_opens_the_ui(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert TrackingConfig().ui_command().endswith("mlflow ui --backend-store-uri sqlite:///runs/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example")
    assert TrackingConfig().ui_command() == "https://***@mlflow.example"


def test_a_registration_is_a_name_and_an_alias():
    assert TrackingConfig(register_as="digits@champion").register_as == "digits@champion"
    with pytest.raises(ValidationError, match="'digits' is not name@alias"):
        TrackingConfig(register_as="digits")
