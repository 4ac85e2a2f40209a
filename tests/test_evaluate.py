"""`attvae evaluate`: the figures of runs and exports, on any number of ranks, and what it refuses."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from array_images import ArrayImages, array_dataset
from launched import start, start_ranks, wait_for
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from attvae import export, tensor_file
from attvae import train as train_module
from attvae.cli import app
from attvae.config import load
from attvae.data.loader import eval_batches
from attvae.data.manifest import Manifest
from attvae.engine.rendezvous import World
from attvae.evaluate import Evaluation, open_trained
from attvae.evaluation_noise import evaluation_noise
from attvae.export import ExportConfig, TrainedOn
from attvae.model.vae import DeepVAE
from data_prep.digits import dataset
from data_prep.writer import prepare

EVALUATE = [sys.executable, "-m", "attvae.cli", "evaluate"]
TINY = "configs/test/tiny.yaml"
SAMPLES = 300


def evaluated(*arguments: object) -> dict[str, Any]:
    """The report, in this process."""
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments), "--json", "-"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(*arguments: object) -> str:
    result: Result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return result.stderr


def a_model(config: str, data: Path) -> DeepVAE:
    """Of random weights, all of which matter: gates start at zero, and so does much else."""
    torch.manual_seed(0)
    model = DeepVAE(load(Path(config)).model, Manifest.read(data).spec).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn_like(p)
    return model


def exported(folder: Path, model: DeepVAE, data: Path | None, *reasons: str) -> Path:
    manifest = Manifest.read(data) if data else None
    about = {name: getattr(manifest, name) for name in TrainedOn.model_fields} if manifest else None
    trained_on = TrainedOn(**about) if about else None
    config = ExportConfig(model=model.config, spec=model.spec, trained_on=trained_on, samples_seen=1000, forced=reasons)
    export.write(folder, model, config, "a card")
    return folder


@pytest.fixture(scope="module")
def run_folder(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, briefly trained."""
    out = tmp_path_factory.mktemp("runs") / "brief"
    given = [f"data.path={digits}", f"train.samples={SAMPLES}", "train.lr_warmup=0", "checkpoint.every=200"]
    train_module.train(load(Path(TINY), [*given, "engine.name=plain", "tracking.mlflow=false"]), out)
    return out


@pytest.fixture
def other_digits(tmp_path: Path) -> Path:
    """The same kind of images, but other ones."""
    original = dataset()
    prepare(replace(original, splits={**original.splits, "train": original.splits["val"]}), tmp_path / "other")
    return tmp_path / "other"


# ------------------------------------------------------------------------------------------------------- the figures


def numbers(found: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(found, dict):
        for name, value in found.items():
            yield from numbers(value, f"{path}/{name}")
    elif isinstance(found, list):
        for place, value in enumerate(found):
            yield from numbers(value, f"{path}/{place}")
    elif found is not None:
        yield path, found


@pytest.mark.parametrize("config", [TINY, "configs/demo.yaml"])  # group norm, no norm
def test_one_rank_and_two_give_the_same_with_any_batch(config: str, digits: Path, tmp_path: Path) -> None:
    model = exported(tmp_path / "model", a_model(config, digits), digits)
    asked = [str(model), "--data", str(digits), "--draws", "2", "--iw", "3", "--seed", "5"]
    found = []
    for name, how in (("one", ["--batch", "7"]), ("two", ["--batch", "64", "--ranks", "2"])):
        process = start([*EVALUATE, *asked, *how, "--json", str(tmp_path / f"{name}.json")])
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        assert output.count("test NELBO") == 1, "one rank speaks"
        found.append(json.loads((tmp_path / f"{name}.json").read_text()))
    one, two = found
    assert one.pop("command") == f"attvae evaluate {' '.join(asked)} --batch 7 --json {tmp_path}/one.json"
    two.pop("command")
    figures_of_one, figures_of_two = dict(numbers(one.pop("figures"))), dict(numbers(two.pop("figures")))
    assert one == two
    assert (one["images"], one["draws"], one["iw"], one["seed"], one["forced"]) == (297, 2, 3, 5, [])
    assert figures_of_one.keys() == figures_of_two.keys()
    assert figures_of_one["/iw_nll_nats/value"] < figures_of_one["/nelbo_nats/value"]
    assert figures_of_one["/kl_nats/value"] > 0.1
    for name, value in figures_of_one.items():
        assert figures_of_two[name] == pytest.approx(value, rel=1e-6), name


def test_a_run_gives_the_figures_of_its_summary(run_folder: Path) -> None:
    summary, report = json.loads((run_folder / "summary.json").read_text())["test"], evaluated(run_folder)
    figures = report["figures"]
    for name in ("nelbo_nats", "nll_nats", "bits_per_dim"):
        assert figures[name]["value"] == pytest.approx(summary[name], rel=1e-6)
        assert figures[name]["standard_error"] == pytest.approx(summary["standard_error"][name], rel=1e-5)
    assert [kl["value"] for kl in figures["kl_nats_per_layer"]] == pytest.approx(summary["kl_nats_per_layer"], rel=1e-5)
    units = figures["active_units"]
    assert {name: units[name] for name in summary["active_units"]} == summary["active_units"]
    assert units["units"] == 3 * 4 * 4 * 4
    model = report["model"]
    assert (model["kind"], model["checkpoint"], model["samples_seen"]) == ("run", f"{SAMPLES:012d}", SAMPLES)
    assert model["weights"] == "ema"
    assert model["trained_on"] == {name: report["data"][name] for name in ("name", "version", "fingerprint")}
    assert (report["images"], report["draws"]) == (summary["images"], summary["draws"]) == (297, 2)


def test_its_export_gives_the_same(run_folder: Path, digits: Path) -> None:
    of_run, of_export = (
        evaluated(run_folder, "--draws", 2),
        evaluated(run_folder / "model", "--data", digits, "--draws", 2),
    )
    assert of_export["model"]["samples_seen"] == SAMPLES
    assert of_export["model"]["trained_on"] == of_run["model"]["trained_on"]
    assert of_export["figures"] == of_run["figures"]


def test_against_the_model_image_by_image(digits: Path, tmp_path: Path) -> None:
    """Means, standard errors and the importance-weighted bound, from the model's own methods and numpy."""
    model = a_model(TINY, digits)
    figures = evaluated(exported(tmp_path / "model", model, digits), "--data", digits, "--draws", 2, "--iw", 5)[
        "figures"
    ]
    manifest = Manifest.read(digits)
    cpu = torch.device("cpu")
    nelbo, bound = [], []
    for draw in range(2):
        data = load(Path(TINY), [f"data.path={digits}"]).data
        [batch] = eval_batches(manifest, data, "test", 0, draw, 297, 0, 1)
        samples = [evaluation_noise(model, batch.ids, draw, cpu, sample=k) for k in range(5)]
        nelbo.append(model(batch.x, samples[0]).nelbo_nats.detach().double().numpy())
        together = [torch.cat(layer) for layer in zip(*samples, strict=True)]
        bound.append(-model.log_likelihood(batch.x, 5, together).double().numpy())
    for name, draws in (("nelbo_nats", nelbo), ("iw_nll_nats", bound)):
        of_image = np.mean(draws, axis=0)
        assert figures[name]["value"] == pytest.approx(of_image.mean(), rel=1e-6)
        assert figures[name]["standard_error"] == pytest.approx(of_image.std(ddof=1) / np.sqrt(297), rel=1e-5)


def test_noise_belongs_to_seed_image_draw_and_sample(digits: Path) -> None:
    model, cpu = a_model(TINY, digits), torch.device("cpu")

    def noise(ids: list[int], *place: int, seed: int = 0) -> torch.Tensor:
        draw, sample = place
        return evaluation_noise(model, torch.tensor(ids), draw, cpu, seed, sample)[0]

    torch.testing.assert_close(noise([3, 1, 2], 4, 5)[[1, 2, 0]], noise([1, 2, 3], 4, 5), rtol=0, atol=0)
    places = [noise([1], 0, 0), noise([2], 0, 0), noise([1], 1, 0), noise([1], 0, 1), noise([1], 0, 0, seed=1)]
    for i, one in enumerate(places):
        assert all(not torch.equal(one, other) for other in places[i + 1 :])


def test_the_split_and_the_seed_matter(run_folder: Path) -> None:
    of_test, of_val, reseeded = (
        evaluated(run_folder),
        evaluated(run_folder, "--split", "val"),
        evaluated(run_folder, "--seed", 1),
    )
    summary = json.loads((run_folder / "summary.json").read_text())
    assert of_val["figures"]["nelbo_nats"]["value"] == pytest.approx(summary["val"]["nelbo_nats"], rel=1e-6)
    assert of_val["images"] == 100
    difference = reseeded["figures"]["nelbo_nats"]["value"] - of_test["figures"]["nelbo_nats"]["value"]
    assert 0 < abs(difference) < 3 * of_test["figures"]["nelbo_nats"]["standard_error"]


def test_forward_passes_are_never_larger_than_the_batch(digits: Path) -> None:
    model, sizes = a_model(TINY, digits), set()
    for module in model.layers:
        module.register_forward_hook(lambda _, __, out: sizes.add(len(out.z)))
    cfg = load(Path(TINY), [f"data.path={digits}"])
    world = World(0, 1, torch.device("cpu"))
    Evaluation(model, Manifest.read(digits), cfg.data, world, draws=1, batch=50, importance_samples=20).of("val")
    assert sizes == {50}


def test_the_table(run_folder: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", str(run_folder), "--iw", "2"])
    assert result.exit_code == 0
    for row in ("test NELBO", "test importance-weighted bound, K = 2", "test NLL", "test KL of layer 2", "layer 2"):
        assert f"│ {row} " in result.stdout
    assert "EMA weights; digits 1, 297 images, 2 draws of each, seed 0" in result.stdout
    assert "forced" not in result.stdout


# ------------------------------------------------------------------------------------------------------- on its ranks


def rank(process: subprocess.Popen[str], number: int) -> psutil.Process | None:
    for child in psutil.Process(process.pid).children():
        if child.environ().get("RANK") == str(number):
            return child
    return None


@pytest.fixture
def endless(digits: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """An evaluation on two ranks that are at work, for hours."""
    model = exported(tmp_path / "model", a_model(TINY, digits), digits)
    process = start([*EVALUATE, str(model), "--data", str(digits), "--iw", "10000000", "--ranks", "2"])
    try:
        assert wait_for(lambda: rank(process, 0) and rank(process, 1), 60)
        children = [child for number in (0, 1) if (child := rank(process, number))]
        assert wait_for(lambda: all(len(child.net_connections("tcp")) > 2 for child in children), 60)
        yield process, children
    finally:
        for child in psutil.Process(process.pid).children() if process.poll() is None else []:
            child.kill()
        process.kill()
        process.communicate()


def test_a_rank_that_is_killed_ends_all(endless: tuple[subprocess.Popen[str], list[psutil.Process]]) -> None:
    process, children = endless
    children[1].kill()
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "attvae: rank 1 was ended by SIGKILL: ending the others" in output
    assert "Traceback" not in output
    assert not any(child.is_running() for child in children)


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all(endless: tuple[subprocess.Popen[str], list[psutil.Process]], by: signal.Signals) -> None:
    process, children = endless
    process.send_signal(by)
    output, _ = process.communicate(timeout=30)
    assert process.returncode not in (0, 2)
    assert "Traceback" not in output
    assert not any(child.is_running() for child in children)


@pytest.mark.slow
def test_no_rank_is_left_when_the_first_process_is_killed(
    endless: tuple[subprocess.Popen[str], list[psutil.Process]],
) -> None:
    process, children = endless
    process.kill()
    assert wait_for(lambda: not any(child.is_running() for child in children), 20)


def test_bad_input_on_two_ranks_is_said_once(run_folder: Path) -> None:
    process = start([*EVALUATE, str(run_folder / "nowhere"), "--ranks", "2"])
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output.count("is neither a run folder") == 1
    assert "Traceback" not in output


@pytest.mark.slow
def test_ranks_that_a_launcher_has_started(run_folder: Path, tmp_path: Path) -> None:
    command = [*EVALUATE, str(run_folder), "--json", str(tmp_path / "report.json")]
    ended = [(process, process.communicate(timeout=90)[0]) for process in start_ranks(command, 2)]
    assert [process.returncode for process, _ in ended] == [0, 0], ended
    found = dict(numbers(json.loads((tmp_path / "report.json").read_text())["figures"]))
    assert found == pytest.approx(dict(numbers(evaluated(run_folder)["figures"])), rel=1e-6)
    ended = [(process, process.communicate(timeout=90)[0]) for process in start_ranks([*command, "--ranks", "3"], 2)]
    assert [process.returncode for process, _ in ended] == [2, 2]
    assert "--ranks 3, but a launcher has started 2" in "".join(said for _, said in ended)


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--iw", "0"], ["--iw", "greater than or equal to 1"]),
        (["--ranks", "0"], ["--ranks", "greater than or equal to 1"]),
        (["--batch", "0"], ["--batch", "greater than or equal to 1"]),
        (["--draws", "0"], ["--draws", "greater than or equal to 1"]),
        (["--seed", "-1"], ["--seed", "greater than or equal to 0"]),
        (["--split", "valid"], ["--split", "'valid'", "'train', 'val', 'test'"]),
        (["--data", "nowhere"], ["data folder nowhere does not exist"]),
        (["--json", "nowhere/report.json"], ["--json nowhere/report.json cannot be written"]),
    ],
)
def test_arguments(run_folder: Path, arguments: list[str], words: list[str]) -> None:
    said = " ".join(refused(run_folder, *arguments).replace("│", " ").split())
    for word in words:
        assert word in said


def test_an_export_needs_data(run_folder: Path) -> None:
    assert "name them with --data" in refused(run_folder / "model")


def test_a_folder_that_is_nothing(tmp_path: Path) -> None:
    assert f"{tmp_path} is neither a run folder (no config.yaml) nor an export (no model.json)" in refused(tmp_path)


def forced(*arguments: object) -> list[str]:
    """Why; that is said at every figure, and in the table."""
    report = evaluated(*arguments, "--force")
    reasons: list[str] = report["forced"]
    marked = [
        each for figure in report["figures"].values() for each in (figure if isinstance(figure, list) else [figure])
    ]
    assert all(figure["forced"] == reasons for figure in marked if figure is not None)
    table = CliRunner().invoke(app, ["evaluate", *map(str, arguments), "--force"]).stdout
    assert table.count("(forced)") == 3 + 3 + 3 + 1, "NELBO, NLL, KL; the KL and the units of three layers; all units"
    for reason in reasons:
        assert f"forced: {reason}" in table
    return reasons


def test_an_unfinished_run(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "unfinished"
    shutil.copytree(run_folder, out)
    shutil.rmtree(out / "checkpoints" / f"{SAMPLES:012d}")
    assert f"{out} is unfinished: 200 of 300 samples seen at its newest checkpoint: let `attvae train`" in refused(out)
    assert forced(out) == ["unfinished: 200 of 300 samples seen"]
    assert evaluated(out, "--force")["model"]["samples_seen"] == 200
    shutil.rmtree(out / "checkpoints")
    for how in ([], ["--force"]):
        assert f"{out} has no complete checkpoint yet" in refused(out, *how)


def test_a_checkpoint_without_ema(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "plain"
    shutil.copytree(run_folder, out)
    folder = out / "checkpoints" / f"{SAMPLES:012d}"
    [file] = folder.glob("tensors-*.safetensors")
    held = load_file(file)
    save_file({name: tensor for name, tensor in held.items() if not name.startswith("ema/")}, file)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][file.name] = tensor_file.hash_file(file)._asdict()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert f"{folder} has no EMA of the weights" in refused(out)
    assert forced(out) == ["plain weights, for the checkpoint has no EMA"]
    assert evaluated(out, "--force")["model"]["weights"] == "parameters"
    trained = open_trained(out, force=True)
    for name, p in trained.model.named_parameters():
        torch.testing.assert_close(p, held[f"parameters/{name}"], rtol=0, atol=0)


def test_other_data_of_the_same_kind(run_folder: Path, other_digits: Path, digits: Path) -> None:
    found, trained = Manifest.read(other_digits).fingerprint, Manifest.read(digits).fingerprint
    difference = f"fingerprint {found}, not {trained}"
    for path in (run_folder, run_folder / "model"):
        assert f"{path} was not trained on what {other_digits} holds ({difference})" in refused(
            path, "--data", other_digits
        )
        assert forced(path, "--data", other_digits) == [f"other data than the training's: {difference}"]


def test_another_version_of_the_data(run_folder: Path, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "newer")
    manifest = json.loads((tmp_path / "newer" / "manifest.json").read_text())
    (tmp_path / "newer" / "manifest.json").write_text(json.dumps({**manifest, "version": "2"}))
    assert "(version 2, not 1)" in refused(run_folder, "--data", tmp_path / "newer")
    assert forced(run_folder, "--data", tmp_path / "newer") == ["other data than the training's: version 2, not 1"]


def test_damaged_images(run_folder: Path, digits: Path, tmp_path: Path) -> None:
    """A training that skips them is no reason to leave them out of a figure."""
    shutil.copytree(run_folder, tmp_path / "run")
    shutil.copytree(digits, tmp_path / "data")
    shard = tmp_path / "data" / "test-000000.tar"
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    configured = (tmp_path / "run" / "config.yaml").read_text().replace("on_damage: raise", "on_damage: skip")
    (tmp_path / "run" / "config.yaml").write_text(configured)
    said = refused(tmp_path / "run", "--data", tmp_path / "data")
    assert "test-000000.tar" in said
    assert "add --force for figures of the sound images, marked as such" in said
    [reason] = forced(tmp_path / "run", "--data", tmp_path / "data")
    report = evaluated(tmp_path / "run", "--data", tmp_path / "data", "--force")
    assert reason == f"{297 - report['images']} of the 297 images are damaged and left out"
    assert 100 < report["images"] < 200


def test_an_export_of_a_run_that_scales_its_images(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 1), np.uint8)
    prepare(array_dataset(ArrayImages(pixels)), tmp_path / "data")
    given = [f"data.path={tmp_path / 'data'}", "data.size=8", "train.samples=100", "train.lr_warmup=0"]
    given += ["train.global_batch=5", "model.likelihood={kind: logistic_mixture, num_mixtures: 2}"]
    cfg = load(Path(TINY), [*given, "checkpoint.every=100", "engine.name=plain", "tracking.mlflow=false"])
    train_module.train(cfg, tmp_path / "run")
    of_run = evaluated(tmp_path / "run")
    of_export = evaluated(tmp_path / "run" / "model", "--data", tmp_path / "data")
    assert of_export["figures"] == of_run["figures"]


def test_an_export_that_was_made_by_force(digits: Path, tmp_path: Path) -> None:
    model = exported(tmp_path / "model", a_model(TINY, digits), digits, "unfinished: 1,000 of 2,000 samples seen")
    report = evaluated(model, "--data", digits, "--draws", 1)
    assert report["forced"] == report["figures"]["nll_nats"]["forced"] == ["unfinished: 1,000 of 2,000 samples seen"]


def test_an_export_of_before_knows_no_data(digits: Path, other_digits: Path, tmp_path: Path) -> None:
    model = exported(tmp_path / "model", a_model(TINY, digits), None)
    assert evaluated(model, "--data", other_digits)["forced"] == []


@pytest.mark.parametrize(
    "change",
    [
        lambda pixels: pixels.astype(np.uint16),
        lambda pixels: np.repeat(pixels, 3, axis=3),
        lambda pixels: np.pad(pixels, ((0, 0), (0, 2), (0, 2), (0, 0))),
    ],
    ids=["bits", "channels", "size"],
)
def test_images_that_do_not_fit(run_folder: Path, tmp_path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    prepare(array_dataset(ArrayImages(change(np.zeros((6, 8, 8, 1), np.uint8)))), tmp_path / "data")
    for path in (run_folder, run_folder / "model"):
        for how in ([], ["--force"]):
            said = refused(path, "--data", tmp_path / "data", *how)
            assert f"{path} models DataSpec(" in said
            assert f"but {tmp_path}/data holds DataSpec(" in said
