import pytest
from golden.arrays import facts

from attvae.model.official import canonical_names, count_parameters, l2_coefficients
from attvae.model.vae import DeepVAE


def test_every_variable_has_the_authors_penalty(cfg1: DeepVAE) -> None:
    """Their coefficients were measured by differentiating the penalty that their code adds to the loss."""
    names = canonical_names(cfg1)
    found = {names[name]: coefficient for name, coefficient in l2_coefficients(cfg1).items()}
    assert found == pytest.approx({v["name"]: v["l2"] for v in facts()["variables"] if v["trainable"]}, rel=1e-6)


def test_counted_as_the_authors_count(cfg1: DeepVAE) -> None:
    assert count_parameters(cfg1) == facts()["count_params_official"]
