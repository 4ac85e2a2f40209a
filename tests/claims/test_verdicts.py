"""Verdicts on studies whose answers are known: closed forms, and scipy for the statistics."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from made_study import cell, failed, grid, missing, read, study
from scipy import stats

from attvae.claims.outcome import Verdict
from attvae.claims.results import DEPTH, done, read_results, strata
from attvae.claims.tables import cells_table, mean_and_error, time_table
from attvae.claims.verdicts import fewer_layers, less_time, likelihood, upper_layers, verdicts

Row = dict[str, Any]
NOISE = (-0.1, 0.0, 0.1)
ALIKE = (0.0, 0.01, -0.02)


def with_attention(gain: Callable[[int], float], base: Callable[[int], float] = lambda depth: 24.0) -> list[Row]:
    """NELBO of the baseline by depth, and by how much less the attentive model has; three seeds around them."""
    return grid(lambda d, v, s: base(d) - (gain(d) if v == "both" else 0.0) + NOISE[s])


def test_standard_error_against_scipy() -> None:
    values = [22.1, 22.9, 23.0]
    assert mean_and_error(values, 4) == f"{np.mean(values):.4f} ± {stats.sem(values):.4f}"
    assert mean_and_error([22.1], 1) == "22.1 (one seed)"


# Verdicts: each outcome of each claim


def test_better_likelihood_is_shown() -> None:
    found = likelihood(read(*with_attention(lambda depth: 1.0)), DEPTH, "nats")
    assert found.outcome == "shown"
    assert (
        "−1.00 nats in the mean over depths 2, 4, 8 (−1.00, −1.00, −1.00), p = 0.00013 (8,000 splits)" in found.sentence
    )


def test_worse_likelihood_contradicts() -> None:
    found = likelihood(read(*with_attention(lambda depth: -1.0)), DEPTH, "nats")
    assert found.outcome == "contradicted"
    assert "+1.00 nats" in found.sentence


def test_a_difference_within_the_seeds_is_not_shown() -> None:
    assert likelihood(read(*with_attention(lambda depth: 0.01)), DEPTH, "nats").outcome == "not shown at this scale"


def test_likelihood_in_bits() -> None:
    found = likelihood(read(*with_attention(lambda depth: 1.0)), DEPTH, "bits/dim")
    assert f"−{1 / 64 / math.log(2):.3f} bits/dim" in found.sentence


@pytest.mark.parametrize(
    ("base", "gain", "outcome", "words"),
    [
        # Half a nat for each doubling, and attention is worth six tenths.
        (lambda d: 25 - 0.5 * math.log2(d), lambda d: 0.6, "shown", "2 layers: 8; 4 layers: not reached with up to 8"),
        (lambda d: 25 - 0.5 * math.log2(d), lambda d: -0.6, "contradicted", "4 layers: 2; 8 layers: 4"),
        (lambda d: 25 + 0.5 * math.log2(d), lambda d: 0.6, "not shown at this scale", "no gain from depth is seen"),
        (lambda d: 25 - 0.01 * math.log2(d), lambda d: 0.6, "not shown at this scale", "no gain from depth is seen"),
        (lambda d: 25 - 0.5 * math.log2(d), lambda d: 0.0, "not shown at this scale", "2 layers: 2; 4 layers: 4"),
    ],
)
def test_fewer_layers(base: Callable[[int], float], gain: Callable[[int], float], outcome: str, words: str) -> None:
    found = fewer_layers(read(*with_attention(gain, base)))
    assert found.outcome == outcome
    assert words in found.sentence
    assert "2: 100,000; 4: 100,000; 8: 100,000 samples" in found.sentence


def test_fewer_layers_need_the_deepest_baseline() -> None:
    cells = with_attention(lambda depth: 0.6, lambda depth: 25 - 0.5 * math.log2(depth))
    for seed in range(3):
        cells = replaced(cells, failed(8, "none", seed))
    found = fewer_layers(read(*cells))
    assert found.outcome == "not shown at this scale"
    assert "Left out, as a side has no ended cell: depth 8." in found.sentence
    left = likelihood(read(*cells), DEPTH, "nats")
    assert left.outcome == "shown"
    assert "Left out, as a side has no ended cell: depth 8." in left.sentence


def test_depth_is_worth_nothing_as_often_as_its_level_says() -> None:
    """Under the null hypothesis the gate opens in one of 20 splits of three against three, whatever lies between."""
    random = np.random.default_rng(0)
    opened = 0
    for _ in range(200):
        noise = random.normal(size=(3, 3))
        cells = [
            cell(d, v, s, 24 + noise[i, s]) for i, d in enumerate((2, 4, 8)) for v in ("none", "both") for s in range(3)
        ]
        opened += "no gain from depth is seen" not in fewer_layers(read(*cells)).sentence
    assert stats.binomtest(opened, 200, 1 / 20).pvalue > 0.05


def raced(speed: dict[int, float], noise: tuple[float, ...] = ALIKE) -> list[Row]:
    """The attentive model falls `speed` times as fast from 40 nats, by depth."""
    return [
        cell(depth, variant, seed, curve=[[0, 40.0], [100_000, 30.0 - 10 * (rate - 1) + noise[seed]]])
        for depth, faster in speed.items()
        for variant, rate in (("none", 1.0), ("both", faster))
        for seed in range(3)
    ]


@pytest.mark.parametrize(
    ("speed", "outcome", "ratios"),
    [
        ({2: 2.0, 4: 1.25, 8: 1.6}, "shown", "2.00, 1.25, 1.60"),
        ({2: 0.5, 4: 0.8, 8: 0.8}, "contradicted", "0.50, 0.80, 0.80"),
        ({2: 2.0, 4: 0.8, 8: 1.6}, "not shown at this scale", "2.00, 0.80, 1.60"),
    ],
)
def test_less_time(speed: dict[int, float], outcome: str, ratios: str) -> None:
    found = less_time(read(*raced(speed)))
    assert found.outcome == outcome
    assert f"takes {ratios} times the training time" in found.sentence
    assert "At equal training time: not run." in found.sentence


@pytest.mark.parametrize(("nelbo", "outcome"), [(24.0, "shown"), (22.0, "not shown at this scale")])
def test_equal_time_has_a_say(nelbo: float, outcome: str) -> None:
    """The attentive models have 23 nats: baselines of as much time have more, or less."""
    longer = [cell(d, "none", s, nelbo + NOISE[s], set_name="equal_time") for d in (2, 4, 8) for s in range(3)]
    found = less_time(read(*raced({2: 2.0, 4: 2.0, 8: 2.0}), *longer))
    assert found.outcome == outcome
    assert f"{23 - nelbo:+.2f} nats, p = 0.00013".replace("-", "−") in found.sentence
    assert "(100 against 100, 100 against 100, 100 against 100 seconds," in found.sentence


def test_times_that_are_not_equal_have_no_say() -> None:
    """Baselines that are better, but not in the same time."""
    longer = [cell(8, "none", s, 20.0 + NOISE[s], set_name="equal_time", samples=106_000) for s in range(3)]
    found = less_time(read(*raced({2: 2.0, 4: 2.0, 8: 2.0}), *longer))
    assert found.outcome == "shown"
    words = "train 106 against 100 seconds, without against with attention, at depths 8: up to 6%"
    assert words in found.sentence


def test_equal_time_is_that_of_runs_side_by_side() -> None:
    """The seconds per image of the longer runs themselves, of another day or machine, decide nothing."""
    other = {"device": "A GPU", "s_per_image": 9.0}
    longer = [cell(8, "none", s, 20.0 + NOISE[s], set_name="equal_time", **other) for s in range(3)]
    found = less_time(read(*raced({2: 2.0, 4: 2.0, 8: 2.0}), *longer))
    assert found.outcome == "not shown at this scale"
    assert "(100 against 100 seconds, without against with attention, at depths 8)" in found.sentence


def test_baselines_of_equal_time_that_failed_are_named() -> None:
    longer = [failed(8, "none", s, "equal_time") for s in range(3)]
    found = less_time(read(*raced({2: 2.0, 4: 2.0, 8: 2.0}), *longer))
    assert found.outcome == "shown"
    assert "At equal training time: no baseline has ended." in found.sentence
    assert "Failed, and not in these means: equal_time/08_none_seed-0, equal_time/08_none_seed-1" in found.sentence


def test_seconds_of_two_machines_are_not_measured() -> None:
    cells = raced({2: 2.0, 4: 2.0, 8: 2.0})
    cells[0]["machine"]["device"] = "A GPU"
    found = less_time(read(*cells))
    assert found.outcome == "not measured"
    assert "more than one machine" in found.sentence
    assert "takes 2.00, 2.00, 2.00 times the samples" in found.sentence
    groups = strata(done(read(*cells).of(DEPTH, "none")), read(*cells).of(DEPTH, "both"))
    assert all(row.endswith("| 2.00 | – | – | – |") for row in time_table(groups).splitlines()[2:])


def test_equal_time_counts_once_it_is_complete() -> None:
    longer = [cell(8, "none", 0, 20.0, set_name="equal_time"), missing(8, "none", 1, "equal_time")]
    found = less_time(read(*raced({2: 2.0, 4: 2.0, 8: 2.0}), *longer))
    assert found.outcome == "shown"
    assert "1 of 2 baselines run" in found.sentence


def layered(without: list[float], with_: list[float]) -> list[Row]:
    return [cell(4, variant, seed, kl=kl) for variant, kl in (("none", without), ("both", with_)) for seed in range(3)]


@pytest.mark.parametrize(
    ("without", "with_", "outcome", "words"),
    [
        (
            [2.0, 0.01, 1.0, 1.0],
            [2.0, 0.5, 1.0, 1.0],
            "shown",
            "100% are active (KL above 0.1 nats) with attention, 50%",
        ),
        ([2.0, 0.5, 1.0, 1.0], [2.0, 0.01, 1.0, 1.0], "contradicted", "attention less that without: −0.49 nats"),
        ([2.0, 0.5, 0.0, 0.0], [2.0, 3.5, 1.0, 1.0], "not shown at this scale", "nothing to avoid"),
        ([0.0, 0.0, 1.0, 1.0], [2.0, 0.0, 1.0, 1.0], "not shown at this scale", "50% are active"),
    ],
)
def test_upper_layers(without: list[float], with_: list[float], outcome: str, words: str) -> None:
    found = upper_layers(read(*layered(without, with_)), DEPTH)
    assert found.outcome == outcome
    assert words in found.sentence


# What failed and what is missing


def test_nothing_is_measured_without_cells() -> None:
    nothing = [missing(d, v, s) for d in (2, 4, 8) for v in ("none", "both") for s in range(3)]
    assert [each.outcome for each in verdicts(read(*nothing))] == ["not measured"] * 6
    assert [each.outcome for each in verdicts(read())] == ["not measured"] * 6


def replaced(cells: list[Row], new: Row) -> list[Row]:
    return [new if each["id"] == new["id"] else each for each in cells]


def test_a_missing_cell_keeps_all_open() -> None:
    cells = replaced(with_attention(lambda depth: 1.0), missing(4, "both", 1))
    found = likelihood(read(*cells), DEPTH, "nats")
    assert found.outcome == "not measured"
    assert found.sentence.startswith("So far, with 1 of 18 cells missing: Test NELBO")


@pytest.mark.parametrize(
    ("gain", "variant", "outcome"),
    [
        (1.0, "both", "not shown at this scale"),
        (1.0, "none", "shown"),
        (-1.0, "both", "contradicted"),
        (-1.0, "none", "not shown at this scale"),
    ],
)
def test_a_failure_never_helps_its_side(gain: float, variant: str, outcome: str) -> None:
    cells = replaced(with_attention(lambda depth: gain), failed(4, variant, 1))
    found = likelihood(read(*cells), DEPTH, "nats")
    assert found.outcome == outcome
    assert f"Failed, and not in these means: depth/04_{variant}_seed-1." in found.sentence
    assert "4,000 splits" in found.sentence  # 20 * 10 * 20


def test_a_figure_that_is_no_number_is_a_failure() -> None:
    cells = with_attention(lambda depth: 1.0)
    cells[0]["test"]["nelbo_nats"]["value"] = math.nan
    cells[1]["validation_curve"][1][1] = math.inf
    cells[2]["training"]["s_per_image"] = math.nan
    found = read(*cells).cells
    assert [each.status for each in found[:4]] == ["failed", "failed", "failed", "done"]
    assert found[0].reason == "test.nelbo_nats.value is nan"
    assert found[1].reason == "validation_curve[1][1] is inf"
    assert found[2].reason == "training.s_per_image is nan"


def test_an_error_of_zero_is_one() -> None:
    one = cell(2, "none", 0, 23.0)
    one["test"]["nelbo_nats"]["standard_error"] = 0.0
    assert "| 23.000 ± 0.000 |" in cells_table(read(one).cells)
    one["test"]["nelbo_nats"]["standard_error"] = None
    assert "| 23.000 |" in cells_table(read(one).cells)


def spoilt(change: Callable[[Row], Any]) -> Row:
    found = study([cell(2, "none", 0), cell(2, "both", 0)])
    change(found["cells"][1])
    return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row["test"].pop("iw_nll_nats"), "cell depth/02_both_seed-0: test.iw_nll_nats: Field required"),
        (lambda row: row["test"].update(kl_nats_per_layer=[1.0]), "kl_nats_per_layer has 1 values for depth 2"),
        (lambda row: row["training"].update(s_per_image=0.0), "a training takes time"),
        (lambda row: row.update(variant="neither"), "variant 'neither' is none of none, generative, inference, both"),
        (lambda row: row.update(set="deep"), "set 'deep' is none of depth, equal_time, photographs"),
        (lambda row: row.update(variant="none"), "is there twice"),
        (lambda row: row.update(status="running"), "cell depth/02_both_seed-0: status: Input should be"),
    ],
)
def test_what_is_no_result_is_named(change: Callable[[Row], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        read_results(spoilt(change))
    remedy = "remove its cell.json in the study's folder, and the same command runs it again"
    assert remedy in str(raised.value) or "twice" in message


def test_all_claims_have_a_verdict() -> None:
    found = verdicts(read(*with_attention(lambda depth: 1.0)))
    assert len({each.claim for each in found}) == len(found) == 6
    assert all(isinstance(each, Verdict) and each.sentence for each in found)
