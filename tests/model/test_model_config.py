import subprocess
import sys

import pytest
from pydantic import ValidationError

from attvae.model.config import ModelConfig
from attvae.spec import DataSpec

SMALL = {
    "num_layers": 3,
    "latent_channels": 2,
    "encoder_filters": 4,
    "decoder_filters": 4,
    "likelihood": {"kind": "bernoulli"},
}
BINARY = DataSpec(height=28, width=28, channels=1, num_bits=1, max_value=1, binary=True)
COLOUR = DataSpec(height=32, width=32, channels=3, num_bits=8, max_value=255)


def test_needs_no_torch() -> None:
    code = "import sys, attvae.model.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {
                "preprocessing": {"scales": [-2, -2]},
                "postprocessing": {"scales": [2, 2]},
                "encoder_attention": {"key_dim": 6},
            },
            "key_dim 6 is not divisible by 2\\^P = 4",
        ),
        ({"preprocessing": {"scales": [0]}}, "halves 0 times but postprocessing.scales doubles 1 times"),
        ({"encoder": {"scales": [0, -2]}}, "encoder.scales: -2 is not possible there"),
        ({"posterior": {"low": 2.0, "high": 1.0}}, "low 2.0 must be below high 1.0"),
        ({"prior": {"low": 0.0, "high": 1.0}}, "unit_slope needs limits on both sides of 0, but prior"),
        ({"coarser_layers": [1, 2]}, "coarser_layers \\[1, 2\\] are 3 of num_layers 3; leave one or more"),
        ({"coarser_layers": [0, 2]}, "coarser_layers.0\n.*greater than or equal to 1"),
        ({"widht": 3}, "Extra inputs are not permitted"),
        ({"likelihood": {"kind": "gaussian"}}, "'bernoulli', 'logistic_mixture'"),
    ],
)
def test_contradictions(change: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate({**SMALL, **change})


@pytest.mark.parametrize(
    ("change", "spec", "message"),
    [
        ({"num_proc_blocks": 3}, BINARY, "28 x 28 padded by 0 to 28 x 28 cannot be halved P = 3 times"),
        (
            {"coarser_layers": [1, 1]},
            BINARY,
            "28 x 28 padded by 0 to 28 x 28 cannot be halved P = 1 times, and 2 more for coarser_layers; "
            "choose pad so that 8 divides both",
        ),
        ({}, COLOUR, "likelihood bernoulli needs binary data"),
        ({"likelihood": {"kind": "logistic_mixture"}}, BINARY, "the data is binary; use likelihood bernoulli"),
        (
            {"likelihood": {"kind": "logistic_mixture", "edges": "published"}},
            COLOUR.model_copy(update={"channels": 1}),
            "1 channels and max_value 255; use edges normalised",
        ),
        (
            {"likelihood": {"kind": "logistic_mixture"}},
            COLOUR.model_copy(update={"channels": 5}),
            "1 to 4 channels, not 5",
        ),
    ],
)
def test_images_that_do_not_fit(change: dict, spec: DataSpec, message: str) -> None:
    config = ModelConfig.model_validate({**SMALL, **change})
    with pytest.raises(ValueError, match=message):
        config.latent_shapes(spec)


def test_latent_shapes() -> None:
    config = ModelConfig.model_validate({**SMALL, "pad": 2, "num_proc_blocks": 2})
    assert config.latent_shapes(BINARY) == [(2, 8, 8)] * 3
    assert config.halvings == 2
    several = ModelConfig.model_validate({**SMALL, "num_layers": 6, "coarser_layers": [1, 2], "pad": 2})
    assert several.latent_shapes(BINARY) == [(2, 4, 4), *[(2, 8, 8)] * 2, *[(2, 16, 16)] * 3]
    assert several.halvings == 1
