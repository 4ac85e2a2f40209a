from pathlib import Path

import pytest
from pydantic import ValidationError

from attvae.data.config import DataConfig


@pytest.mark.parametrize("path", [Path("data/digits"), "data/what?", "s3://bucket/a", "https://user@host:80/a@b:c"])
def test_addresses(path: Path | str) -> None:
    assert DataConfig(path=path).path == str(path)


@pytest.mark.parametrize("path", ["https://user:hunter2@host/a", "s3://bucket/a?X-Amz-Signature=hunter2"])
def test_a_secret_is_refused_and_not_repeated(path: str) -> None:
    with pytest.raises(ValidationError) as refused:
        DataConfig(path=path)
    [error] = refused.value.errors()
    assert "netrc" in error["msg"]
    assert "hunter2" not in error["msg"]
