import pytest

from attvae.tracking.config import TrackingConfig, without_password


def test_the_line_that_opens_the_ui(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert TrackingConfig().ui_command().endswith("mlflow ui --backend-store-uri sqlite:///runs/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example")
    assert TrackingConfig().ui_command() == "https://***@mlflow.example"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("at http://u:p@ss@host/db: refused", "at http://***@host/db: refused"),
        ("sqlite:///runs/mlflow.db", "sqlite:///runs/mlflow.db"),
        ("write to me@example.org", "write to me@example.org"),
    ],
)
def test_without_password(text, cleaned):
    assert without_password(text) == cleaned
