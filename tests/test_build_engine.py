"""Which optimizer an engine gets, where the ranks' hosts differ."""

from pathlib import Path
from typing import Any

import pytest
import torch

from attvae.build_engine import build_engine
from attvae.config import load
from attvae.engine.batch import divide
from attvae.engine.rendezvous import World
from attvae.model.vae import DeepVAE
from attvae.optim.adamax import Adamax
from attvae.optim.compiled_adamax import CompiledAdamax, why_not
from attvae.spec import DataSpec

CONFIG = Path(__file__).parents[1] / "configs" / "test" / "tiny.yaml"
DIGITS = DataSpec(height=8, width=8, channels=1, num_bits=1, max_value=1, binary=True)


class BesideAHostWithout(World):
    """What the first of two ranks sees, whose other one has no C compiler."""

    def gather(self, value: Any) -> list[Any]:
        return [value, "Adamax"]


@pytest.mark.skipif(bool(why_not()), reason=str(why_not()))
@pytest.mark.parametrize(
    ("kind", "optimizer", "said"),
    [
        (World, CompiledAdamax, "compiled on this host"),
        (BesideAHostWithout, Adamax, "some hosts have no C compiler"),
    ],
)
def test_all_ranks_round_alike(
    kind: type[World], optimizer: type[Adamax], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = load(CONFIG, ["engine.name=plain"])
    engine = build_engine(cfg, DeepVAE(cfg.model, DIGITS), kind(0, 1, torch.device("cpu")), divide(24, 1, None))
    assert type(engine._optimizer) is optimizer  # type: ignore[attr-defined]
    assert said in capsys.readouterr().err
