"""`attvae claims` as a user starts it: interrupted, resumed, with a cell that fails, on Ray."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from launched import REPOSITORY, wait_for
from mlflow import MlflowClient
from ray_head import ray_head

BOTH, OTHER = "depth/02_both_seed-0", "depth/02_other_seed-0"
OUT = Path("runs/claims/small")
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
"""Of the Ray cluster, which asks for one."""


def study_file(folder: Path, digits: Path, samples: int = 2000, **variants: dict[str, Any]) -> Path:
    given = {"none": {"model.encoder_attention": None, "model.decoder_attention": None}, "both": {}, **variants}
    widths = {"none": [7, 8], "both": [4, 6]} | {name: [4, 6] for name in variants}
    tree = {
        "about": "two models of two layers",
        "chosen_on": "nothing",
        "limits": "all",
        "base": str(REPOSITORY / "configs/test/tiny.yaml"),
        "overrides": {"data.path": str(digits), "engine.name": "plain", "evaluate.binarisations": 1},
        "of_samples": {"train.log_every": 0.1, "eval.every": 0.1, "checkpoint.every": 0.1},
        "variants": given,
        "seeds": [0],
        "importance_samples": 2,
        "parallel": 2,
        "sets": {"depth": {"about": "d", "depths": [{"layers": 2, "samples": samples, "widths": widths}]}},
    }
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return file


def start(study: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "attvae.cli", "claims", study.name, *options],
        cwd=study.parent,
        env={**os.environ, **TOKEN, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(study: Path, *options: str) -> tuple[int, str]:
    with start(study, *options) as process:
        said, _ = process.communicate(timeout=400)
    return process.returncode, said


def rows(study: Path, out: str = "runs/claims/small") -> dict[str, Any]:
    return {row["id"]: row for row in json.loads((study.parent / out / "results.json").read_text())["cells"]}


def interrupt(study: Path, *options: str) -> str:
    """Asks a study to stop once the cell with attention has been evaluated; gives what it said."""
    with start(study, *options) as process:
        journal = study.parent / OUT / BOTH / "run/metrics.jsonl"
        if not wait_for(lambda: journal.is_file() and "val/nelbo_nats" in journal.read_text(), 120):
            process.kill()
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert "SIGTERM: the same command goes on" in said
    return said


@pytest.mark.slow
def test_an_interrupted_study_goes_on_and_a_cell_run_again_has_the_same_figures(tmp_path: Path, digits: Path) -> None:
    study = study_file(tmp_path, digits, samples=12000)
    interrupt(study)
    assert {row["status"] for row in rows(study).values()} == {"missing"}
    assert list((tmp_path / OUT / BOTH / "run/checkpoints").iterdir())

    code, said = run(study)
    assert code == 0, said
    assert "0 of 2 cells are done, 2 to go" in said
    assert {row["status"] for row in rows(study).values()} == {"done"}
    assert (tmp_path / OUT / "results.md").is_file()

    code, said = run(study)  # nothing is left to do
    assert code == 0, said
    assert "2 of 2 cells are done, 0 to go" in said

    code, said = run(study, "--cell", BOTH, "--out", "again")
    assert code == 0, said
    assert sum(row["status"] == "missing" for row in rows(study, "again").values()) == 1  # it is named, too
    again, resumed = rows(study, "again")[BOTH], rows(study)[BOTH]
    assert again["test"] == resumed["test"]  # to the last bit: also interrupted and resumed
    assert again["attention"] == resumed["attention"]
    evaluated = subprocess.run(
        [sys.executable, "-m", "attvae.cli", "evaluate", str(tmp_path / "again" / BOTH / "run"), "--json", "-"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(evaluated.stdout)["figures"]["nelbo_nats"]["value"]
    assert found == pytest.approx(again["test"]["nelbo_nats"]["value"], rel=1e-6)


@pytest.mark.slow
def test_a_cell_that_fails_is_reported_and_the_others_go_on(tmp_path: Path, digits: Path) -> None:
    # An optimizer's step so large that the training leaves the useful numbers.
    study = study_file(tmp_path, digits, wild={"train.lr": 1.0e12, "train.lr_warmup": 0, "train.clip_norm": None})
    code, said = run(study)
    assert code == 1, said
    assert "1 of 3 cells have failed" in said
    found = rows(study)
    assert [found[f"depth/02_{each}_seed-0"]["status"] for each in ("none", "both", "wild")] == [
        "done",
        "done",
        "failed",
    ]
    assert found["depth/02_wild_seed-0"]["reason"] == "test.nelbo_nats.value is nan"
    page = (tmp_path / OUT / "results.md").read_text()
    assert "depth/02_wild_seed-0" in page
    assert "failed" in page


@pytest.mark.slow
def test_what_is_not_of_this_study_is_refused(tmp_path: Path, digits: Path) -> None:
    study = study_file(tmp_path, digits, samples=300)
    assert run(study, "--cell", BOTH)[0] == 0
    same = study.read_text()
    study.write_text(same.replace("importance_samples: 2", "importance_samples: 3"))
    code, said = run(study)
    assert (code, "importance_samples: 2 there, 3 here" in said) == (2, True), said
    study.write_text(same.replace("samples: 300", "samples: 400"))
    code, said = run(study)
    assert (code, "train.samples: 300 there, 400 here" in said) == (2, True), said
    study.write_text(same)
    row = tmp_path / OUT / BOTH / "cell.json"
    row.write_text(row.read_text()[:50])
    code, said = run(study)
    assert (code, "is damaged" in said, "remove it" in said) == (2, True, True), said
    row.unlink()
    (tmp_path / OUT / BOTH / "run/metrics.jsonl").unlink()
    code, said = run(study, "--cell", BOTH)
    assert (code, "1 of 1 cells have failed" in said) == (1, True), said
    assert "cannot be read" in rows(study)[BOTH]["reason"]


def test_bad_input_of_the_command(tmp_path: Path, digits: Path) -> None:
    study = study_file(tmp_path, digits)
    code, said = run(study, "--cell", "depth/02_bath_seed-0")
    assert (code, "the study has no such cell; one of them is depth/02_none_seed-0" in said) == (2, True), said
    code, said = run(study, "--page", str(tmp_path / "nowhere"))
    assert (code, "is no folder: make it first" in said) == (2, True), said


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with ray_head(**TOKEN) as address:
        yield address


@pytest.mark.ray
def test_a_study_on_a_ray_cluster(tmp_path: Path, digits: Path, cluster: str) -> None:
    study = study_file(tmp_path, digits)
    code, said = run(study, "--address", cluster)
    assert code == 0, said
    on_ray = rows(study)
    assert {row["status"] for row in on_ray.values()} == {"done"}
    code, said = run(study, "--out", "here")
    assert code == 0, said
    here = rows(study, "here")
    assert {name: row["test"] for name, row in on_ray.items()} == {name: row["test"] for name, row in here.items()}
    assert (tmp_path / "runs/mlflow.db").is_file()
    client = MlflowClient(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiments = [each.experiment_id for each in client.search_experiments()]
    names = {each.info.run_name for each in client.search_runs(experiments)}
    assert names == set(on_ray)


@pytest.mark.ray
def test_a_study_on_a_cluster_is_interrupted_and_goes_on(tmp_path: Path, digits: Path, cluster: str) -> None:
    study = study_file(tmp_path, digits, samples=12000)
    interrupt(study, "--address", cluster)
    assert list((tmp_path / OUT / BOTH / "run/checkpoints").iterdir())
    code, said = run(study, "--address", cluster)
    assert code == 0, said
    assert {row["status"] for row in rows(study).values()} == {"done"}


def workers_of(cell: str) -> list[psutil.Process]:
    """Ray's processes in which a cell is being trained."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with suppress(psutil.Error):
            if any(part.endswith(f"{cell}/run") for part in process.info["cmdline"] or []):
                found += [each for each in process.parents() if each.name().startswith("ray::")]
    return found


@pytest.mark.ray
def test_cells_that_end_in_no_row_are_reported_and_the_others_go_on(tmp_path: Path, digits: Path, cluster: str) -> None:
    """One is lost with its worker, twice; in another one the task itself ends in an error."""
    study = study_file(tmp_path, digits, samples=12000, other={})
    broken = tmp_path / OUT / OTHER / "train.rank-0.log"
    broken.mkdir(parents=True)  # where a file is to be written
    with start(study, "--address", cluster) as process:
        killed: set[int] = set()
        while len(killed) < 2:  # Ray tries it once more
            if not wait_for(lambda: any(each.pid not in killed for each in workers_of(BOTH)), 120):
                process.kill()
                break
            for worker in workers_of(BOTH):
                if worker.pid not in killed:
                    worker.kill()
                    killed.add(worker.pid)
        said, _ = process.communicate(timeout=200)
    assert process.returncode == 1, said
    assert "2 of 3 cells have failed" in said
    found = rows(study)
    assert found["depth/02_none_seed-0"]["status"] == "done"
    assert found[BOTH]["status"] == found[OTHER]["status"] == "failed"
    assert found[BOTH]["reason"].startswith("Ray lost it: ")
    assert found[OTHER]["reason"].startswith("IsADirectoryError: ")
    broken.rmdir()
    code, said = run(study, "--address", cluster)  # what has failed is tried again
    assert code == 0, said
    assert {row["status"] for row in rows(study).values()} == {"done"}


@pytest.mark.ray
def test_a_cluster_without_room_for_a_cell_is_refused(tmp_path: Path, digits: Path, cluster: str) -> None:
    study = study_file(tmp_path, digits)
    tree = yaml.safe_load(study.read_text()) | {"gpus": 1}
    study.write_text(yaml.safe_dump(tree, sort_keys=False))
    code, said = run(study, "--address", cluster)
    assert (code, "has 1 CPU and 1 GPU, which a cell of the study takes" in said) == (2, True), said
