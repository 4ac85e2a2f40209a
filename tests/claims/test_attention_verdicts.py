"""Sparse and structured, on attention whose answers are known: closed forms."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from made_study import cell, read

from attvae.claims.attention_verdicts import sparse, structured
from attvae.claims.results import Results


def peaked(n: int) -> list[float]:
    """Most on the nearest, the rest on the second."""
    return [0.8, 0.2] + [0.0] * (n - 2) if n > 1 else [1.0]


def uniform(n: int) -> list[float]:
    return [1 / n] * n


def attending(alpha: Callable[[int], list[float]], worth: float = 1.0, depth: int = 8) -> Results:
    return read(*[cell(d, "both", s, alpha=alpha, worth=worth) for d in (4, depth) for s in range(3)])


@pytest.mark.parametrize(
    ("alpha", "worth", "outcome"),
    [
        (peaked, 1.0, "shown"),
        (peaked, -1.0, "not shown at this scale"),
        (uniform, 1.0, "contradicted"),
    ],
)
def test_sparse(alpha: Callable[[int], list[float]], worth: float, outcome: str) -> None:
    found = sparse(attending(alpha, worth))
    assert found.outcome == outcome
    assert f"worse in {6 if worth > 0 else 0} of 6 cells" in found.sentence


def test_entropy_of_two_contexts_in_closed_form() -> None:
    """At three layers: the generative path chooses once, of two; the inference path of four, of three and of two."""
    h = -0.8 * math.log(0.8) - 0.2 * math.log(0.2)
    decoder, encoder = h / math.log(2), (h / math.log(4) + h / math.log(3) + h / math.log(2)) / 3
    found = sparse(read(*[cell(3, "both", s, alpha=peaked) for s in range(3)]))
    assert f"{decoder:.2f} in the generative path" in found.sentence
    assert f"{encoder:.2f} in the inference path" in found.sentence


def test_the_same_pattern_beyond_the_nearest_is_structure() -> None:
    assert structured(attending(peaked)).outcome == "shown"
    assert "20% of the probability beyond the nearest context" in structured(attending(peaked)).sentence


def test_attention_to_the_nearest_alone_is_none() -> None:
    almost = structured(attending(lambda n: [0.97, 0.03] + [0.0] * (n - 2) if n > 1 else [1.0]))
    assert almost.outcome == "contradicted"


def test_patterns_that_seeds_do_not_share_are_not_structure() -> None:
    random = np.random.default_rng(0)
    drawn = structured(attending(lambda n: random.dirichlet(np.ones(n)).tolist()))
    assert drawn.outcome == "not shown at this scale"
    dead = structured(attending(peaked, worth=-0.1))
    assert dead.outcome == "not shown at this scale"
    assert "worse in 0 of 6 cells" in dead.sentence
