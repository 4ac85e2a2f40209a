"""The search file: what it says, what it may not say."""

from pathlib import Path

import pytest
import yaml

from attvae.search.config import Asha, SearchConfig, load_search

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "configs" / "search" / "digits.yaml"

MINIMAL = """
base: ../run.yaml
samples: 1000
space: {train.lr: {loguniform: [1.0e-3, 1.0e-2]}}
trials: 4
searcher: random
"""


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    (tmp_path / "search").mkdir()
    file = tmp_path / "search" / "some.yaml"
    file.write_text(MINIMAL)
    return file


def test_the_base_is_found_from_the_file_and_the_name_is_its_stem(minimal: Path) -> None:
    search = load_search(minimal)
    assert search.base == minimal.parents[1] / "run.yaml"
    assert search.name == "some"
    assert search.space["train.lr"].bounds == (1e-3, 1e-2)


def test_a_base_from_the_command_line_is_found_from_here(minimal: Path) -> None:
    assert load_search(minimal, ["base=configs/demo.yaml"]).base == Path("configs/demo.yaml")


def test_overrides_reach_into_dotted_keys(minimal: Path) -> None:
    search = load_search(
        minimal,
        [
            "space.train.lr.loguniform=[1.0e-4, 1.0e-3]",
            "space.optim.beta2={choice: [0.9, 0.99]}",
            "overrides.data.path=elsewhere",
            "for_trials.eval.every=100",
            "scheduler={kind: asha, first_rung: 200}",
        ],
    )
    assert {key: dimension.kind for key, dimension in search.space.items()} == {
        "train.lr": "loguniform",
        "optim.beta2": "choice",
    }
    assert search.space["train.lr"].bounds == (1e-4, 1e-3)
    assert search.overrides == {"data.path": "elsewhere"}
    assert search.for_trials == {"eval.every": 100}
    assert search.scheduler == Asha(first_rung=200, factor=3)


def test_numbers_that_yaml_takes_for_text_are_numbers(minimal: Path) -> None:
    overrides = [
        "space.train.lr={choice: [1e-3, 1E2]}",
        "space.optim.eps={uniform: [1e-9, 1e-8], when: {train.lr: 1e-3}}",
    ]
    space = load_search(minimal, overrides).space
    assert space["train.lr"].choice == [0.001, 100.0]
    assert space["optim.eps"].bounds == (1e-9, 1e-8)
    assert space["optim.eps"].when == {"train.lr": 0.001}


def test_written_and_read_again_it_is_the_same() -> None:
    search = load_search(DIGITS, ["space.train.clip_norm={choice: [null, 100.0], when: {optim.beta2: 0.99}}"])
    assert SearchConfig.model_validate(yaml.safe_load(search.to_yaml())) == search


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trails=3", "unknown key trails: did you mean trials?"),
        ("space={}", "name at least one key"),
        ("space.train.lr=[1, 2]", "space: train.lr: [1, 2] is no range: say {choice: [...]}"),
        ("space.train.lr={choise: [1]}", "train.lr.choise: [1] is no range: say {choice: [...]}"),
        ("space.train.lr.wenn={optim.beta2: 1}", "train.lr: unknown key wenn: did you mean when?"),
        ("space.train.lr={}", "give one of choice, uniform, loguniform, int, found none of them"),
        ("space.train.lr.uniform=[1, 2]", "found uniform and loguniform"),
        ("space.train.lr={uniform: [2, 1]}", "train.lr: uniform=[2.0, 1.0] is empty"),
        ("space.train.lr={uniform: [1, 1]}", "uniform=[1.0, 1.0] is empty"),
        ("space.train.lr={int: [3, 3]}", "int=[3, 3] is empty"),
        ("space.train.lr={choice: []}", "choice=[] is empty"),
        ("space.train.lr={choice: [1, 1]}", "names a value twice"),
        ("space.train.lr={loguniform: [0, 1]}", "loguniform=[0.0, 1.0]: both bounds must be above 0"),
        ("space.train.lr={uniform: [0, .inf]}", "finite number"),
        ("metric=test/nelbo_nats", "nothing is chosen by the test images"),
        ("metric=val/nelbo", "val/nelbo is not what every trial reports of the validation images: val/nelbo_nats"),
        ("overrides.train.lr=1", "train.lr is in space and in overrides"),
        ("trials=null", "trials is missing"),
        ("searcher=grid", "trials=4 must go"),
        ("samples=0", "greater than 0"),
        ("nodes=2", "ranks=1 cannot be spread evenly over nodes=2"),
        ("scheduler={kind: asha, first_rung: 1000}", "first_rung=1000 is not below samples=1000"),
        ("scheduler={kind: median, grace: 1000}", "grace=1000 is not below samples=1000"),
        ("scheduler={kind: pbt, every: 1000}", "every=1000 is not below samples=1000"),
        ("scheduler={kind: halving}", "'none', 'asha', 'median', 'pbt'"),
    ],
)
def test_bad_input_is_named(minimal: Path, override: str, said: str) -> None:
    with pytest.raises(ValueError, match="the configuration is not valid") as error:
        load_search(minimal, [override])
    assert said in str(error.value)
    assert str(minimal) in str(error.value)


def test_the_grid_knows_no_ranges_of_reals(minimal: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.lr is a range of reals"):
        load_search(minimal, ["searcher=grid", "trials=null"])


def test_a_grid_beyond_all_measure_is_refused(minimal: Path) -> None:
    endless = ["searcher=grid", "trials=null", "space={seed: {int: [0, 2000000000]}}"]
    with pytest.raises(ValueError, match="searcher=grid has 2,000,000,001 points: at most 100,000"):
        load_search(minimal, endless)


def test_pbt_draws_its_population_at_random(minimal: Path) -> None:
    with pytest.raises(ValueError, match="searcher=optuna cannot"):
        load_search(minimal, ["searcher=optuna", "scheduler={kind: pbt, every: 100}"])
    with pytest.raises(ValueError, match=r"side by side, .*: parallel=1 must be trials=4"):
        load_search(minimal, ["scheduler={kind: pbt, every: 100}"])
    load_search(minimal, ["scheduler={kind: pbt, every: 100}", "parallel=4"])


def test_ranks_of_a_trial_share_no_gpu(minimal: Path) -> None:
    with pytest.raises(ValueError, match=r"gpus_per_rank=0\.5 lets the ranks of a trial share a GPU"):
        load_search(minimal, ["ranks=2", "gpus_per_rank=0.5"])
    load_search(minimal, ["gpus_per_rank=0.5"])
