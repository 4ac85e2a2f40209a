"""`attvae evaluate --features`: samples against images, in the features of a network trained on the digits."""

import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_networks import digits_network, write_onnx
from test_evaluate import EVALUATE, TINY, a_model, evaluated, exported, refused
from typer.testing import CliRunner

from attvae import train as train_module
from attvae.cli import app
from attvae.config import load
from attvae.data.loader import eval_batches
from attvae.data.manifest import Manifest, Split
from attvae.evaluation.feature_network import FeatureNetwork
from attvae.evaluation.frechet import FeatureMoments, frechet_estimate
from attvae.evaluation.precision_recall import precision_recall
from attvae.evaluation_noise import sampling_noise


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("features") / "digits.onnx"
    return path, write_onnx(digits_network(), (1, 8, 8), path)


@pytest.fixture(scope="module")
def untrained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("models") / "untrained", a_model(TINY, digits), digits)


def asked(network: tuple[Path, str], *more: object) -> list[object]:
    return ["--features", network[0], "--features-sha256", network[1], "--draws", 1, *more]


def features(network: tuple[Path, str], x: torch.Tensor) -> torch.Tensor:
    return FeatureNetwork(*network, (1, 8, 8), 1)(x)


def images_of(split: Split, digits: Path) -> torch.Tensor:
    [batch] = eval_batches(
        Manifest.read(digits), load(Path(TINY), [f"data.path={digits}"]).data, split, 0, 0, 2000, 0, 1
    )
    return batch.x[batch.weights > 0]


def moments(x: torch.Tensor) -> FeatureMoments:
    found = FeatureMoments(x.shape[1])
    found.add(x, torch.arange(len(x)))
    return found


@pytest.mark.slow
def test_the_order_of_things(network: tuple[Path, str], digits: Path, tmp_path: Path) -> None:
    """Images of the data are nearer to the data than samples of a trained model, these nearer than noise."""
    given = [f"data.path={digits}", "train.samples=20000", "eval.every=20000", "checkpoint.every=20000"]
    given += ["train.lr=3e-3", "train.kl_warmup=10000"]  # faster, the latents are given up
    train_module.train(load(Path(TINY), [*given, "engine.name=plain", "tracking.mlflow=false"]), tmp_path / "run")
    report = evaluated(tmp_path / "run", *asked(network))
    tests = features(network, images_of("test", digits))
    of_train = frechet_estimate(moments(tests), moments(features(network, images_of("train", digits)[:297])))
    torch.manual_seed(0)
    of_noise = frechet_estimate(moments(tests), moments(features(network, torch.randint(0, 2, (297, 1, 8, 8)))))
    figures = report["figures"]
    of_model = figures["frechet_distance"]
    for nearer, farther in ((of_train._asdict(), of_model), (of_model, of_noise._asdict())):
        gap = farther["value"] - nearer["value"]
        # Both are against the same images: their errors are correlated, and that of the gap is smaller than this.
        error = math.hypot(nearer["standard_error"], farther["standard_error"])
        assert gap > 3 * error, (of_train, of_model, of_noise)
    assert 0.1 < figures["precision"]["value"] < 1
    assert 0.1 < figures["recall"]["value"] < 1
    print(of_train, of_model, of_noise, figures["precision"], figures["recall"])


def test_against_the_parts(network: tuple[Path, str], untrained: Path, digits: Path) -> None:
    model = a_model(TINY, digits)
    report = evaluated(
        untrained, "--data", digits, *asked(network, "--samples", 200, "--temperature", 0.7, "--seed", 3)
    )
    noise, uniform = sampling_noise(model, range(200), 3)
    drawn = features(network, model.sample(200, 0.7, noise, uniform))
    manifest, data = Manifest.read(digits), load(Path(TINY), [f"data.path={digits}"]).data
    [batch] = eval_batches(manifest, data, "test", 3, 0, 297, 0, 1)
    images = features(network, batch.x)
    expected = frechet_estimate(moments(images), moments(drawn))
    found = report["figures"]["frechet_distance"]
    assert found["value"] == pytest.approx(expected.value, rel=1e-5)
    assert found["standard_error"] == pytest.approx(expected.standard_error, rel=1e-3)
    places = torch.arange(297) * 200 // 297
    spread = images[torch.cat([torch.tensor([True]), places[1:] > places[:-1]])]
    assert len(spread) == 200
    both = precision_recall(spread, drawn)
    for name in ("precision", "recall"):
        assert report["figures"][name]["value"] == pytest.approx(getattr(both, name).value, abs=0.006)
    assert report["features"] == {
        "network": str(network[0]),
        "sha256": network[1],
        "dimensions": 16,
        "images": 297,
        "samples": 200,
        "temperature": 0.7,
        "neighbours": 3,
        "compared_images": 200,
        "compared_samples": 200,
    }


def test_one_rank_and_two_give_the_same_with_any_batch(
    network: tuple[Path, str], untrained: Path, digits: Path, tmp_path: Path
) -> None:
    found: list[dict[str, Any]] = []
    for name, how in (("one", ["--batch", "7"]), ("two", ["--batch", "64", "--ranks", "2"])):
        file = tmp_path / f"{name}.json"
        arguments = [str(untrained), "--data", str(digits), *map(str, asked(network)), "--json", str(file), *how]
        subprocess.run([*EVALUATE, *arguments], check=True, timeout=200)
        found.append(json.loads(file.read_text()))
    one, two = found
    assert one["features"] == two["features"]
    assert one["features"]["samples"] == one["features"]["images"] == 297
    for name in ("frechet_distance", "precision", "recall"):
        for part in ("value", "standard_error"):
            assert two["figures"][name][part] == pytest.approx(one["figures"][name][part], rel=1e-4, abs=1e-6), name


def test_the_table(network: tuple[Path, str], untrained: Path, digits: Path) -> None:
    arguments = [str(untrained), "--data", str(digits), *map(str, asked(network, "--samples", 10))]
    said = CliRunner().invoke(app, ["evaluate", *arguments]).stdout
    for words in ("10 samples against 297 images of test", "Fréchet distance", "precision, k = 3", "recall, k = 3"):
        assert words in said
    assert "16 features of" in said.replace("\n", " ")
    assert "fewer images than features" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--features", "x.onnx"], "--features x.onnx needs --features-sha256"),
        (["--features-sha256", "0" * 64], "go with --features FILE"),
        (["--samples", "9"], "go with --features FILE"),
        (["--temperature", "0"], "go with --features FILE"),
        (["NETWORK", "--features-sha256", "0" * 64], f"not {'0' * 64}: it is another network, or a damaged one"),
        (["NETWORK", "HASH", "--samples", "0"], "--samples"),
        (["NETWORK", "HASH", "--samples", "3"], "--samples 3: 4 at least"),
        (["NETWORK", "HASH", "--temperature", "-1"], "--temperature"),
        (["NETWORK", "HASH", "--temperature", "inf"], "--temperature inf: a finite number"),
    ],
)
def test_bad_input(arguments: list[str], said: str, network: tuple[Path, str], untrained: Path, digits: Path) -> None:
    meant = {"NETWORK": ["--features", network[0]], "HASH": ["--features-sha256", network[1]]}
    given = [word for argument in arguments for word in meant.get(argument, [argument])]
    assert said in refused(untrained, "--data", digits, *given)
