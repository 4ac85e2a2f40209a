import pytest

from attvae.checkpoint_config import CheckpointConfig


def test_what_is_kept_for_ever_is_written() -> None:
    assert CheckpointConfig(every=100, keep_every=300).keep_every == 300
    with pytest.raises(ValueError, match=r"keep_every=250 is not a multiple of every=100: make it one"):
        CheckpointConfig(every=100, keep_every=250)
