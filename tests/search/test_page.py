"""The page of a sweep: whole in itself, drawn to scale, and honest about what few trials can tell."""

import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import optuna
import pytest
from written_trials import METRIC, search_of, write_run

from attvae.search.config import Dimension
from attvae.search.importance import importance
from attvae.search.lines import lines_of
from attvae.search.page import page
from attvae.search.parallel_coordinates import parallel_coordinates
from attvae.search.sweep_folder import SweepFolder
from attvae.search.trial import Trial, read_trial

_VOID = {"meta", "br", "img", "link"}


class Reader(HTMLParser):
    """Every element with its attributes, and all text; an element that is not closed is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str, attribute: str) -> dict[str, dict[str, str]]:
        return {
            attributes[attribute]: attributes
            for name, attributes in self.elements
            if name == tag and attribute in attributes
        }


def points(element: dict[str, str]) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in element["points"].split())]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[SweepFolder]:
    folder = SweepFolder(tmp_path / "sweep")
    with folder.owned(search_of(), resume=False):
        yield folder


def point_of(lr: float) -> dict[str, float]:
    return {"train.lr": lr, "optim.beta2": 0.99, "optim.eps": 1e-5, "optim.ema_decay": 0.99, "model.latent_channels": 4}


def test_the_page_needs_nothing_else_and_escapes_everything(folder: SweepFolder) -> None:
    nasty = "<script>alert('x')</script>&\"'"
    write_run(folder.trials / "a", {5000: 30.0, 60000: 25.0})
    trials = [
        read_trial(folder.generations("a"), "a", point_of(0.01), "finished"),
        Trial(id=nasty, config={**point_of(0.01), "train.lr": nasty}, status="failed", reason=nasty),
    ]
    search = search_of(f"space.train.lr={{choice: [0.01, {json.dumps(nasty)}]}}")
    text = page(search, folder, trials)
    reader = Reader(text)
    assert "script" not in {tag for tag, _ in reader.elements}
    assert reader.text.count(nasty) >= 3
    for _, attributes in reader.elements:
        assert not attributes.keys() & {"src", "onclick", "onload"}
        assert re.match(r"#|best\.yaml$", attributes.get("href", "#"))
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_the_page_says_what_came_of_the_sweep(folder: SweepFolder) -> None:
    write_run(folder.trials / "a", {5000: 30.0, 60000: 25.0}, test=24.0)
    write_run(folder.trials / "b", {5000: 31.0, 15000: 29.0})
    trials = [
        read_trial(folder.generations("a"), "a", point_of(0.01), "finished"),
        read_trial(folder.generations("b"), "b", point_of(0.001), "stopped", "asha at 15,000 samples"),
        Trial(id="c", config=point_of(0.015), status="running"),
    ]
    reader = Reader(page(search_of(), folder, trials))
    assert (
        "2 of 12 trials have ended: 1 after the whole budget of 60,000 samples, 1 stopped early, 0 failed"
        in reader.text
    )
    assert "The best is trial a: val/nelbo_nats 25.0000 at 60,000 samples" in reader.text
    assert "asha at 15,000 samples" in reader.text
    assert "at least 8 with differing figures are needed" in reader.text


def test_curves_are_drawn_to_scale(folder: SweepFolder) -> None:
    write_run(folder.trials / "a", {15000: 30.0, 30000: 25.0, 60000: 20.0})
    trials = [read_trial(folder.generations("a"), "a", point_of(0.01), "finished")]
    text = page(search_of(), folder, trials)
    _, curve = re.findall(r'<polyline[^>]*data-trial="a"[^>]*points="([^"]+)"', text)
    (x0, y0), (x1, y1), (x2, y2) = points({"points": curve})
    assert (x2 - x1) / (x1 - x0) == pytest.approx(2, abs=0.02)  # 30,000 and 15,000 samples
    assert (y2 - y1) / (y1 - y0) == pytest.approx(1, abs=0.02)  # 5 nats each
    assert y2 > y1 > y0  # less is further down


def test_parallel_coordinates_are_to_scale() -> None:
    space = {
        "train.lr": Dimension(loguniform=(1e-3, 1e-1)),
        "optim.name": Dimension(choice=["adamax", "adamw"]),
        "optim.weight_decay": Dimension(uniform=(0, 1), when={"optim.name": "adamw"}),
    }
    configs = {
        "low": {"train.lr": 1e-3, "optim.name": "adamax"},
        "middle": {"train.lr": 1e-2, "optim.name": "adamw", "optim.weight_decay": 0.25},
        "high": {"train.lr": 1e-1, "optim.name": "adamw", "optim.weight_decay": 1},
        "failed": {"train.lr": 1e-1, "optim.name": "adamw", "optim.weight_decay": 0},
    }
    trials = [
        Trial(id=key, config=config, status="finished", val={"nelbo_nats": 10.0 + i})
        for i, (key, config) in enumerate(configs.items())
    ]
    trials[3] = Trial(id="failed", config=configs["failed"], status="failed")
    reader = Reader(parallel_coordinates(space, lines_of(trials, METRIC), METRIC))
    drawn = {key: points(element) for key, element in reader.of("polyline", "data-trial").items()}
    assert [*reader.of("g", "data-axis")] == [*space, METRIC]
    height = {key: [y for _, y in line] for key, line in drawn.items()}
    bottom, top = height["low"][0], height["high"][0]
    assert height["middle"][0] == pytest.approx((bottom + top) / 2)  # half way in the logarithm
    assert (height["low"][1], height["middle"][1]) == (bottom, top)
    assert height["middle"][2] == pytest.approx(bottom + 0.25 * (top - bottom))
    assert height["low"][2] > bottom + 10  # below the axis: not searched there
    assert height["low"][3] > height["middle"][3] > height["high"][3]
    assert len(drawn["failed"]) == 3  # no figure, no place on the metric's axis
    ranks = {key: element.get("style") for key, element in reader.of("polyline", "data-trial").items()}
    assert ranks == {"low": "--rank: 0%", "middle": "--rank: 50%", "high": "--rank: 100%", "failed": None}


# ---------------------------------------------------------------------------------------------------------- importance


def sampled(trials: int) -> tuple[dict[str, Dimension], list[dict[str, float]], np.ndarray]:
    """Independent of each other: a over two decades, b a choice, c that does nothing."""
    space = {
        "a": Dimension(loguniform=(0.01, 1.0)),
        "b": Dimension(choice=["x", "y", "z"]),
        "c": Dimension(uniform=(0.0, 1.0)),
    }
    draw = np.random.default_rng(0)
    units = draw.uniform(size=(trials, 3))
    found = [{"a": 0.01 * 100 ** float(a), "b": "xyz"[int(3 * b)], "c": float(c)} for a, b, c in units]
    return space, found, units


def test_shares_are_those_of_the_variance() -> None:
    """Uniform ranks of y = 2u + v, with v one of three: shares from Sobol's definition by a fine grid."""
    space, found, units = sampled(300)
    result = importance(space, found, [float(2 * a + int(3 * b)) for a, b, _ in units])
    a, b = np.meshgrid((np.arange(600) + 0.5) / 600, np.arange(3), indexing="ij")
    ranks = (2 * a + b).ravel().argsort().argsort().reshape(a.shape)
    expected = {"a": ranks.var(axis=0).mean() / ranks.var(), "b": ranks.var(axis=1).mean() / ranks.var()}
    assert result is not None
    assert result.explained > 0.9
    assert result.shares["a"] == pytest.approx(expected["a"], abs=0.06)
    assert result.shares["b"] == pytest.approx(expected["b"], abs=0.06)
    assert result.shares["c"] < 0.02


def test_the_order_is_optunas_too() -> None:
    space, found, units = sampled(60)
    figures = [float(4 * a + 0.8 * int(3 * b) + 0.3 * c) for a, b, c in units]
    distributions = {
        "a": optuna.distributions.FloatDistribution(0.01, 1.0, log=True),
        "b": optuna.distributions.CategoricalDistribution(["x", "y", "z"]),
        "c": optuna.distributions.FloatDistribution(0.0, 1.0),
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    study.add_trials(
        [
            optuna.create_trial(params=p, distributions=distributions, value=v)
            for p, v in zip(found, figures, strict=True)
        ]
    )
    theirs = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )
    result = importance(space, found, figures)
    assert result is not None
    assert sorted(space, key=result.shares.__getitem__) == sorted(space, key=theirs.__getitem__) == ["c", "b", "a"]


def test_of_noise_nothing_is_claimed(folder: SweepFolder) -> None:
    noise = np.random.default_rng(3).normal(30, 1, size=20)
    trials = []
    for index, nelbo in enumerate(noise):
        write_run(folder.trials / f"{index}", {15000: float(nelbo)})
        config = point_of(1e-3 * 15 ** (index / 20))
        trials.append(read_trial(folder.generations(f"{index}"), f"{index}", config, "stopped"))
    reader = Reader(page(search_of(), folder, trials))
    assert "20 trials at 15,000 samples seen: too few, or too noisy, to tell" in reader.text
    assert reader.of("dd", "data-key") == {}


def test_keys_are_weighed_at_equal_samples(folder: SweepFolder) -> None:
    """Those that went on are better for the training alone: at the first rung the learning rate is what counts."""
    trials = []
    for index in range(24):
        lr = 1e-3 * 15 ** ((index * 7 % 24) / 23)
        figures = {15000: 40 + math.log(lr)} | ({60000: 20.0 + index % 3} if index % 2 else {})
        write_run(folder.trials / f"{index}", figures)
        status = "finished" if index % 2 else "stopped"
        trials.append(read_trial(folder.generations(f"{index}"), f"{index}", point_of(lr), status))
    reader = Reader(page(search_of(), folder, trials))
    assert "Of 24 trials at 15,000 samples seen" in reader.text
    first, *others = reader.of("dd", "data-key")
    assert first == "train.lr"
    assert len(others) == 4


def test_too_few_trials_say_nothing() -> None:
    space, found, units = sampled(7)
    assert importance(space, found, [float(a) for a, _, _ in units]) is None
    space, found, _ = sampled(20)
    assert importance(space, found, [1.0] * 20) is None
