"""The space: its points follow the distributions that are stated, and everything in it is a run that could be."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from scipy import stats
from sklearn.model_selection import ParameterGrid

from attvae.config import load
from attvae.search.config import Dimension, SearchConfig, load_search
from attvae.search.space import (
    best_config,
    check,
    first_points,
    grid,
    planned_trials,
    random_point,
    suggest,
    trial_config,
)

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "configs" / "search" / "digits.yaml"

SPACE = {
    "optim.weight_decay": Dimension(uniform=(0.0, 0.1), when={"optim.name": "adamw"}),
    "train.lr": Dimension(loguniform=(1e-4, 1e-1)),
    "optim.name": Dimension(choice=["adamax", "adamw"]),
    "model.num_layers": Dimension(int=(2, 5)),
}


def tiny(digits: Path, *overrides: str) -> SearchConfig:
    """A search around configs/test/tiny.yaml."""
    small = [f"base={ROOT}/configs/test/tiny.yaml", f"overrides.data.path={digits}"]
    return load_search(DIGITS, [*small, "for_trials={}", "samples=2000", "scheduler={kind: none}", *overrides])


# ------------------------------------------------------------------------------------------------------------ sampling


def test_random_points_follow_their_distributions() -> None:
    points = [random_point(SPACE, 0, index) for index in range(2000)]
    lr = [point["train.lr"] for point in points]
    decay = [point["optim.weight_decay"] for point in points if "optim.weight_decay" in point]
    assert stats.kstest(lr, stats.loguniform(1e-4, 1e-1).cdf).pvalue > 0.01
    assert stats.kstest(decay, stats.uniform(0, 0.1).cdf).pvalue > 0.01
    for key, values in (("optim.name", ["adamax", "adamw"]), ("model.num_layers", [2, 3, 4, 5])):
        counts = [sum(point[key] == value for point in points) for value in values]
        assert sum(counts) == len(points)
        assert stats.chisquare(counts).pvalue > 0.01


def test_a_conditional_key_is_there_with_its_condition_only() -> None:
    points = [random_point(SPACE, 0, index) for index in range(100)]
    assert {point["optim.name"] for point in points} == {"adamax", "adamw"}
    for point in points:
        assert ("optim.weight_decay" in point) == (point["optim.name"] == "adamw")


def test_a_point_depends_on_seed_and_index_alone() -> None:
    random.seed(5)
    again = [random_point(SPACE, 7, index) for index in reversed(range(20))][::-1]
    assert again == [random_point(SPACE, 7, index) for index in range(20)]
    assert again != [random_point(SPACE, 8, index) for index in range(20)]
    without = {key: dimension for key, dimension in SPACE.items() if key != "model.num_layers"}
    assert [random_point(without, 7, i)["train.lr"] for i in range(20)] == [point["train.lr"] for point in again]


def test_the_grid_has_every_combination_once() -> None:
    space = {
        "a": Dimension(choice=[1, None]),
        "b": Dimension(int=(0, 2), when={"c": "x"}),
        "c": Dimension(choice=["x", "y"]),
    }
    expected = ParameterGrid([{"a": [1, None], "b": [0, 1, 2], "c": ["x"]}, {"a": [1, None], "c": ["y"]}])
    found = grid(space)
    assert len(found) == len(expected) == 8
    assert all(point in found for point in expected)


def test_optuna_chooses_within_the_space() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    layers = Dimension(choice=[["encoder"], ["encoder", "decoder"]])  # nothing that optuna could store
    space = {**SPACE, "engine.recompute": layers}
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    for _ in range(30):
        trial = study.ask()
        point = suggest(space, trial)
        assert ("optim.weight_decay" in point) == (point["optim.name"] == "adamw")
        assert 1e-4 <= point["train.lr"] <= 1e-1
        assert point["model.num_layers"] in (2, 3, 4, 5)
        assert point["engine.recompute"] in layers.choice
        stored = {key: value for key, value in trial.params.items() if key != "engine.recompute"}
        assert stored == {key: value for key, value in point.items() if key != "engine.recompute"}
        study.tell(trial, point["train.lr"])
    assert study.best_trial.params["train.lr"] < 1e-3


# --------------------------------------------------------------------------------------------------------------- runs


def test_a_trial_and_the_best_are_the_base_with_their_keys(digits: Path) -> None:
    base = ROOT / "configs/test/tiny.yaml"
    search = tiny(digits, "for_trials.eval.every=500", "samples=1500")
    point = {"train.lr": 1e-5, "engine.recompute": ["encoder", "decoder"], "train.clip_norm": None}
    keys = [f"data.path={digits}", "train.lr=0.00001", "engine.recompute=[encoder, decoder]", "train.clip_norm=null"]
    assert trial_config(search, point) == load(base, [*keys, "eval.every=500", "train.samples=1500"])
    assert best_config(search, point) == load(base, keys)
    longer = search.model_copy(update={"best_samples": 9000})
    assert best_config(longer, point) == load(base, [*keys, "train.samples=9000"])


@pytest.mark.parametrize("path", sorted(DIGITS.parent.glob("*.yaml")), ids=lambda path: path.name)
def test_every_search_of_the_project_can_be_run(digits: Path, path: Path) -> None:
    search = load_search(path, [f"overrides.data.path={digits}"])
    check(search)
    assert len({str(point) for point in first_points(search)}) >= min(8, planned_trials(search))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["space.train.lrr={choice: [1]}"], "unknown key train.lrr: did you mean train.lr?"),
        (["space.train.lr={uniform: [-1, 1]}"], "space.train.lr: -1.0: "),
        (["space.train.lr={choice: [0.1, many]}"], "space.train.lr: 'many': "),
        (["space.train.global_batch={uniform: [50, 100]}"], "fractional part; use int: [low, high]"),
        (["space.train.global_batch={choice: [100, 75]}", "ranks=2"], "space.train.global_batch: 75: "),
        (["ranks=3"], "train.global_batch=100 is not divisible by 3 ranks"),
        (["space.model.encoder.scales={choice: [[0], [-1]]}"], "space.model.encoder.scales: [-1]: "),
        (["space.train.samples={choice: [1, 2]}"], "space.train.samples: a sweep sets this itself"),
        (["space.tracking.uri={choice: [a, b]}"], "space.tracking.uri: a sweep sets this itself"),
        (["samples=900"], "samples=900 ends before the first evaluation: set for_trials.eval.every"),
        (["scheduler={kind: asha, first_rung: 900}"], "first_rung=900 comes before the first evaluation"),
        (["space.train.lr.when={optim.name: adamw}"], "when names optim.name, which is not in the space"),
        (
            ["space.train.lr.when={optim.beta2: 0.5}"],
            "space.train.lr: when optim.beta2=0.5 never holds: its choices are [0.99, 0.999]",
        ),
        (
            ["space.optim.beta2.when={optim.ema_decay: 0.99}", "space.optim.ema_decay.when={optim.beta2: 0.99}"],
            "depend on each other in a circle",
        ),
        (
            ["searcher=random", "scheduler={kind: pbt, every: 1000}", "parallel=12"],
            "space.model.latent_channels: pbt changes keys of a training that goes on",
        ),
        (
            [
                "searcher=random",
                "scheduler={kind: pbt, every: 1000}",
                "parallel=12",
                "space.optim.ema_decay={uniform: [0.9, 0.99], when: {optim.beta2: 0.99}}",
            ],
            "space.optim.ema_decay: pbt changes every key by itself, and cannot heed when",
        ),
        (["base=nowhere.yaml"], "cannot read the configuration nowhere.yaml"),
        (["overrides.data.path=nowhere"], "data folder nowhere does not exist"),
    ],
)
def test_what_cannot_be_run_is_named(digits: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        check(tiny(digits, *overrides))


def test_a_key_is_held_against_the_base_with_its_condition(digits: Path) -> None:
    """weight_decay is adamw's: with the base's adamax it would be an error."""
    decay = "space.optim.weight_decay={uniform: [0.01, 0.1]"
    check(tiny(digits, decay + ", when: {optim.name: adamw}}", "space.optim.name={choice: [adamax, adamw]}"))
    with pytest.raises(ValueError, match=r"(?s)space\.optim\.weight_decay: 0\.01: .*for adamax set optim\.l2"):
        check(tiny(digits, decay + "}"))


# ------------------------------------------------------------------------------------------------------------- dry run


def sweep(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, and then on stdout what it has imported."""
    script = (
        "import sys; from attvae.cli import app\n"
        f"try: app({['sweep', str(DIGITS), *arguments]})\n"
        "finally: print(*sys.modules)"
    )
    return subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_dry_run_shows_trials_and_cost_without_ray(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = sweep(f"overrides.data.path={digits}", "--out", str(out), "--dry-run")
    assert result.returncode == 0, result.stderr
    *said, modules = result.stdout.splitlines()
    text = "\n".join(said)
    assert "12 x 60,000 = 720,000 images at most, 180,000 at least" in text
    assert "These 10 are drawn at random; optuna chooses the others" in text
    first = random_point(load_search(DIGITS).space, 0, 0)
    assert f"{first['train.lr']:.4g}" in text
    assert "attvae.search.space" in modules.split()
    assert {"ray", "deepspeed", "mlflow", "optuna", "sklearn"}.isdisjoint(modules.split())
    assert not out.exists()


def test_bad_input_comes_before_ray(digits: Path) -> None:
    result = sweep(f"overrides.data.path={digits}", "space.train.lrr={choice: [1]}")
    assert result.returncode == 2
    assert "attvae: space.train.lrr: 1: " in result.stderr
    assert "did you mean train.lr?" in result.stderr
    assert "ray" not in result.stdout.splitlines()[-1].split()
