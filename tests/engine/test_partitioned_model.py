"""A model in ZeRO stage 3, whose parameters are whole only where they are used, does what the whole model does."""

from pathlib import Path

import pytest
import torch
from spawn import run_on_ranks

from attvae.config import load
from attvae.data.loader import open_manifest
from attvae.engine import rendezvous
from attvae.engine.batch import divide
from attvae.engine.zero import ZeroEngine
from attvae.model.vae import DeepVAE
from attvae.optim.adamax import Adamax

ALL_PARTS = [  # norms, attentions in depth and in space, squeeze-excite: every kind of parameter that a model can have
    "model.encoder={scales: [0], non_local: {key_dim: 4, layer_norm: true}, squeeze_excite: true}",
    "model.decoder_merge={key_dim: 4}",
    "model.norm=batch",
]


def on_rank(digits: str, *overrides: str) -> dict[str, bool]:
    """Whether partitioned and whole model agree, by method."""
    world = rendezvous.join()
    try:
        cfg = load(
            Path("configs/test/tiny.yaml"),
            [f"data.path={digits}", "engine.stage=3", "engine.persistent_parameters=0", *ALL_PARTS, *overrides],
        )
        spec = open_manifest(cfg.data).spec
        torch.manual_seed(0)
        whole, partitioned = DeepVAE(cfg.model, spec), DeepVAE(cfg.model, spec)
        with torch.no_grad():
            for p in whole.parameters():
                p.add_(0.1 * torch.randn_like(p))  # no gate stays closed
        partitioned.load_state_dict(whole.state_dict())
        optimizer = Adamax(partitioned.parameters(), cfg.optim)
        engine = ZeroEngine(partitioned, optimizer, world, cfg.engine, batch=divide(4, 1, None), clip_norm=None)
        assert all(p.numel() == 0 for p in partitioned.parameters()), "nothing is whole outside"
        x = torch.randint(0, 2, (4, 1, 8, 8), dtype=torch.uint8)
        noise = [torch.randn(8, *shape) for shape in whole.latent_shapes]
        four = [eps[:4] for eps in noise]

        def of(model: DeepVAE) -> dict[str, torch.Tensor]:
            torch.manual_seed(1)
            model.eval()
            with torch.no_grad():
                values = {"forward": model(x, four).nelbo_nats}
            values["log_likelihood"] = model.log_likelihood(x, 2, noise)
            values["sample"] = model.sample(4, noise=four)
            latents = model.encode(x, four)
            values["encode"] = torch.cat([z.flatten(1) for z in latents], dim=1)
            values["decode"] = model.decode(latents)
            with model.without_depth_attention():
                values["without attention"] = model.log_likelihood(x, 2, noise)
            return values

        expected, found = of(whole), of(partitioned)
        agree = {name: torch.equal(found[name], expected[name]) for name in expected}
        agree["parameters"] = all(torch.equal(p, whole.get_parameter(name)) for name, p in engine.parameters())
        agree["ema"] = all(torch.equal(p, whole.get_parameter(name)) for name, p in engine.optimizer_state("ema"))
        try:
            partitioned.attention_gates()
            agree["gates are refused"] = False
        except ValueError as error:
            agree["gates are refused"] = "partitioned" in str(error)
        return agree
    finally:
        rendezvous.leave()


@pytest.mark.parametrize(
    "overrides", [(), pytest.param(("model.coarser_layers=[1,1]",), marks=pytest.mark.slow)], ids=["", "three grids"]
)
def test_it_agrees_with_the_whole_model(overrides: tuple[str, ...], digits: Path) -> None:
    [agree] = run_on_ranks(on_rank, 1, str(digits), *overrides)
    assert all(agree.values()), agree
