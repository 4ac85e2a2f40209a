"""A run as a user sees it: the command, the run folder, and what a kill leaves behind."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from launched import PLAIN, command, deepspeed_command, in_mlflow, result, run, start, wait_for
from mlflow import MlflowClient
from PIL import Image

from data_prep.digits import dataset
from data_prep.writer import prepare


@pytest.fixture(scope="module")
def finished(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An undisturbed run and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    return out, run(command(digits, out, *in_mlflow(out.parent)))


@pytest.fixture
def copied(finished: tuple[Path, str], tmp_path: Path) -> Path:
    """That run, but for its summary: it ends anew."""
    out = shutil.copytree(finished[0], tmp_path / "copied")
    (out / "summary.json").unlink()
    return out


def test_the_run_folder_is_complete(finished: tuple[Path, str]) -> None:
    out, output = finished
    summary = json.loads((out / "summary.json").read_text())
    assert summary["samples_seen"] == 2000
    test = summary["test"]
    assert (test["images"], test["draws"]) == (297, 2), "each test image once in each of two binarisations"
    assert 0 < test["standard_error"]["nelbo_nats"] < 0.1 * test["nelbo_nats"]
    assert test["active_units"]["units"] == 3 * 4 * 4 * 4
    assert test["nelbo_nats"] == pytest.approx(test["nll_nats"] + sum(test["kl_nats_per_layer"]), rel=1e-9)
    assert test["bits_per_dim"] == pytest.approx(test["nelbo_nats"] / 64 / 0.693147180559945, rel=1e-9)
    assert len(test["kl_nats_per_layer"]) == 3
    assert summary["attention_gates"].keys() == {
        *(f"encoder/layer_{i:02d}" for i in range(3)),
        *(f"decoder/layer_{i:02d}" for i in (1, 2)),
    }
    assert summary["test_without_depth_attention"]["nelbo_nats"] != test["nelbo_nats"]
    for name in ("config.yaml", "command.txt", "environment.json", "metrics.jsonl", "mlflow.json", "lock"):
        assert (out / name).is_file(), name
    deepspeed = json.loads((out / "deepspeed.json").read_text())
    assert (deepspeed["train_batch_size"], deepspeed["zero_optimization"]["stage"]) == (100, 1)
    guard = json.loads((out / "checkpoints" / "000000002000" / "state.json").read_text())["guard"]
    assert guard["norms"] == 20
    assert guard["skipped"] == 0
    assert "attvae: Adamax: ours" in output
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["000000001000", "000000002000"]
    assert "mlflow ui --backend-store-uri" in output


def test_a_plain_mlflow_client_finds_everything(finished: tuple[Path, str], tmp_path: Path) -> None:
    out, _ = finished
    client = MlflowClient(f"sqlite:///{out.parent}/mlflow.db")
    experiment = client.get_experiment_by_name("attvae")
    [found] = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["train.global_batch"] == "100"
    assert found.data.tags["ranks"] == "1"
    assert "git.commit" in found.data.tags
    history = client.get_metric_history(found.info.run_id, "val/nelbo_nats")
    assert [metric.step for metric in history] == [1000, 2000]
    assert [m.step for m in client.get_metric_history(found.info.run_id, "kl/layer_02")] == [500, 1000, 1500, 2000]
    summary = json.loads((out / "summary.json").read_text())
    assert found.data.metrics["test/nelbo_nats"] == pytest.approx(summary["test"]["nelbo_nats"])
    pictures = [file.path for file in client.list_artifacts(found.info.run_id, "images")]
    assert sum("samples" in path for path in pictures) >= 2
    assert sum("reconstructions" in path for path in pictures) >= 2
    artifacts = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert {"config.yaml", "summary.json", "report.html"} <= artifacts
    sent = client.download_artifacts(found.info.run_id, "report.html", str(tmp_path))
    assert Path(sent).read_text() == (out / "report.html").read_text()
    with Image.open(sorted((out / "images").glob("samples-*.png"))[-1]) as picture:
        assert len(set(picture.convert("L").tobytes())) > 1, "a grid with something on it"


def test_again_says_that_it_is_done(finished: tuple[Path, str], digits: Path) -> None:
    out, _ = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert "finished: 2,000 samples" in run(command(digits, out))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before, "nothing is touched"


def rows_of_test(table: str) -> list[list[str]]:
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines()]
    return [row for row in cells if row and row[0].startswith("test ") and "without" not in row[0]]


def test_evaluate_gives_the_figures_of_the_run(finished: tuple[Path, str]) -> None:
    out, output = finished
    table = rows_of_test(run([sys.executable, "-m", "attvae.cli", "evaluate", str(out)]))
    of_the_run = rows_of_test(output)
    assert len(of_the_run) == 5
    assert all(row in table for row in of_the_run)


def test_a_killed_run_goes_on_to_the_same_result(finished: tuple[Path, str], digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    process = start(command(digits, out))
    assert wait_for((out / "checkpoints" / "000000001000").exists, 120)
    process.kill()
    process.communicate()
    assert not (out / "summary.json").exists()
    assert "resumed from" in run(command(digits, out))
    assert result(out) == result(finished[0])


def test_another_configuration_is_refused(finished: tuple[Path, str], digits: Path) -> None:
    output = run(command(digits, finished[0], "train.lr=0.5"), expected=2)
    assert "train.lr: 0.01 there, 0.5 here" in output
    assert "Traceback" not in output


def test_a_damaged_newest_checkpoint_is_reported(finished: tuple[Path, str], copied: Path, digits: Path) -> None:
    file = copied / "checkpoints" / "000000002000" / "tensors-0000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    output = run(command(digits, copied))
    assert "000000002000 is damaged" in output
    assert "resumed from" in output
    assert result(copied) == result(finished[0])


def test_where_no_checkpoint_can_be_read_nothing_starts_anew(
    finished: tuple[Path, str], copied: Path, digits: Path
) -> None:
    for file in copied.glob("checkpoints/*/tensors-0000.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])
    journal = (copied / "metrics.jsonl").read_bytes()
    elsewhere = finished[0] / "checkpoints" / "000000001000"
    for again in (command(digits, copied), command(digits, copied, f"resume={elsewhere}")):
        output = run(again, expected=2)
        assert "none of the 2 checkpoints" in output
        assert "Traceback" not in output
        assert (copied / "metrics.jsonl").read_bytes() == journal


def test_a_checkpoint_of_other_data_is_refused(finished: tuple[Path, str], tmp_path: Path) -> None:
    original = dataset()
    fewer = {**original.splits, "train": original.splits["val"]}
    prepare(replace(original, splits=fewer), tmp_path / "other")
    checkpoint = finished[0] / "checkpoints" / "000000001000"
    output = run(command(tmp_path / "other", tmp_path / "run", f"resume={checkpoint}"), expected=2)
    assert f"{checkpoint} was trained on data with fingerprint" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("key", ["resume", "init_from"])
def test_a_named_checkpoint_that_is_missing_is_an_error(digits: Path, tmp_path: Path, key: str) -> None:
    output = run(command(digits, tmp_path / "run", f"{key}={tmp_path}/nothing"), expected=2)
    assert f"{tmp_path}/nothing is no complete checkpoint" in output


@pytest.fixture(scope="module")
def finished_on_two_ranks(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "two"
    run(deepspeed_command(digits, out))
    return out


@pytest.mark.slow
def test_two_ranks_give_what_one_rank_gives(finished: tuple[Path, str], finished_on_two_ranks: Path) -> None:
    (one, _), (two, _) = result(finished[0]), result(finished_on_two_ranks)
    assert two["test"]["nelbo_nats"] == pytest.approx(one["test"]["nelbo_nats"], rel=1e-4)


@pytest.mark.slow
def test_a_folder_in_use_is_refused_on_every_rank(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "busy"
    first = start(command(digits, out, PLAIN, "train.samples=1000000"))
    try:
        assert wait_for(lambda: "pid" in ((out / "lock").read_text() if (out / "lock").exists() else ""), 120)
        output = run(deepspeed_command(digits, out, "train.samples=1000000"), expected=2)
        assert f"in use by another run (pid {first.pid}" in output
        assert output.count("in use by") == 1, "one clear message"
    finally:
        first.kill()
        first.communicate()


@pytest.mark.slow
def test_bad_input_ends_every_rank(digits: Path, tmp_path: Path) -> None:
    output = run(deepspeed_command(digits, tmp_path / "odd", "train.global_batch=101"), expected=2)
    assert output.count("train.global_batch=101 is not divisible by 2 ranks") == 1
    assert not (tmp_path / "odd").exists()
