"""Sweeps as a user starts them, on a real Ray: what they leave, and what they survive."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from launched import processes_of, wait_for
from mlflow import MlflowClient
from ray_head import ray_head
from sweeps import lines_until, run, search_file, start, started, starts, trials

from attvae.tracking.jsonl import read

pytestmark = pytest.mark.ray

AGENTS_S = 90.0
"""Two small agents of Ray's own outlive a killed driver by a minute; all else by seconds."""


def ranks(search: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "train" in words and any(word.startswith(str(search.parent / "out")) for word in words):
            found.append(process)
    return found


def found(search: Path) -> tuple[psutil.Process, psutil.Process]:
    """A rank, and the Ray worker that it was started by."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for rank in ranks(search):
            worker = rank.parent()
            if worker is not None and worker.name().startswith("ray::"):
                return rank, worker
        time.sleep(0.05)
    raise AssertionError("no rank is running")


def addresses_of_ray(driver: int, ranks: list[psutil.Process]) -> set[str]:
    """Where the processes that a driver has started listen, but for the trainings."""
    training = {each.pid for rank in ranks for each in (rank, *rank.children(recursive=True))}
    rays = [each for each in psutil.Process(driver).children(recursive=True) if each.pid not in training]
    listening = [each for ray in rays for each in ray.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    return {each.laddr.ip.removeprefix("::ffff:") for each in listening}


@pytest.fixture(autouse=True)
def no_driver_is_left() -> Iterator[None]:
    yield
    for driver in started:
        if driver.poll() is None:  # the test has failed
            driver.terminate()
            driver.wait()
    started.clear()


@pytest.fixture(scope="module")
def undisturbed(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    search = search_file(tmp_path_factory.mktemp("undisturbed"), digits)
    run(search)
    return trials(search)


def test_a_worker_a_rank_and_the_driver_are_killed(
    digits: Path, tmp_path: Path, undisturbed: dict[str, dict[str, Any]]
) -> None:
    search = search_file(tmp_path / "sweep", digits)
    driver = start(search)
    lines_until(driver, " at 1,000 samples")
    rank, worker = found(search)
    worker.kill()
    lines_until(driver, "starts again: its worker")
    assert wait_for(lambda: not rank.is_running(), 30), "the ranks of a worker that is gone save and end"
    rank, _ = found(search)
    rank.kill()
    lines_until(driver, "starts again: a rank was ended by SIGKILL")
    lines_until(driver, " samples")
    everybody = psutil.Process(driver.pid).children(recursive=True)
    driver.kill()
    driver.wait()
    killed = time.monotonic()
    assert wait_for(lambda: not ranks(search), 30)
    assert "--resume" in run(search, expected=2)
    run(search, "--resume")
    assert trials(search) == undisturbed
    assert sum(starts(search, trial) for trial in undisturbed) > len(undisturbed)
    left = max(1.0, killed + AGENTS_S - time.monotonic())
    assert wait_for(lambda: not [process for process in everybody if process.is_running()], left)
    again = run(search, "--resume")
    assert "begins" not in again
    assert trials(search) == undisturbed


def test_a_sweep_that_is_asked_to_stop_goes_on_later(
    digits: Path, tmp_path: Path, undisturbed: dict[str, dict[str, Any]]
) -> None:
    search = search_file(tmp_path / "sweep", digits)
    driver = start(search)
    lines_until(driver, " at 500 samples")
    assert addresses_of_ray(driver.pid, ranks(search)) == {"127.0.0.1"}
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(60) == 75
    assert wait_for(lambda: not ranks(search), 30)
    run(search, "--resume")
    assert trials(search) == undisturbed


def test_asha_stops_those_that_are_behind_and_remembers_it_over_a_resume(digits: Path, tmp_path: Path) -> None:
    learning_rates = [8e-3, 1e-2, 1e-6, 2e-6]
    search = search_file(
        tmp_path / "sweep",
        digits,
        space={"train.lr": {"choice": learning_rates}},
        searcher="grid",
        trials=None,
        parallel=1,
        samples=2000,
        scheduler={"kind": "asha", "first_rung": 500, "factor": 2},
    )
    driver = start(search)
    lines_until(driver, "t001 finished")
    driver.kill()
    driver.wait()
    run(search, "--resume")
    assert [row["status"] for row in trials(search).values()] == ["finished", "finished", "stopped", "stopped"]
    for trial in ("t002", "t003"):
        assert max(row["samples_seen"] for row in read(tmp_path / f"sweep/out/trials/{trial}/metrics.jsonl")) < 2000


def test_a_trial_that_diverges_fails_alone(digits: Path, tmp_path: Path) -> None:
    overrides = {"data.path": str(digits), "tracking.mlflow": False, "train.roll_back_after": 3}
    search = search_file(
        tmp_path / "sweep",
        digits,
        overrides=overrides | {"train.clip_norm": None},
        space={"train.lr": {"choice": [1e30, 1e-2]}},
        searcher="grid",
        trials=None,
        samples=1000,
    )
    run(search)
    diverged, trained = trials(search).values()
    assert (diverged["status"], trained["status"]) == ("failed", "finished")
    assert "diverged" in diverged["reason"] or "nelbo_nats is" in diverged["reason"]
    assert starts(search, "t000") == 1, "what has diverged is not tried again"


def test_a_sweep_without_a_trial_that_worked_has_failed(digits: Path, tmp_path: Path) -> None:
    search = search_file(
        tmp_path / "sweep",
        digits,
        space={"train.lr": {"choice": [1e30]}},
        overrides={"data.path": str(digits), "tracking.mlflow": False, "train.clip_norm": None},
        searcher="grid",
        trials=None,
        samples=1000,
    )
    told = run(search, expected=1)
    assert "all 1 trials have failed, the last one so: " in told
    assert "Traceback" not in told
    assert not (tmp_path / "sweep/out/best.yaml").exists()


def test_two_ranks_and_one_run_in_mlflow_for_each_trial_under_the_sweep(digits: Path, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/mlflow.db"
    overrides = {"data.path": str(digits), "tracking.uri": store, "tracking.artifacts": str(tmp_path / "artifacts")}
    search = search_file(tmp_path / "sweep", digits, overrides=overrides, trials=2, ranks=2, parallel=1, samples=1000)
    run(search)
    for trial in trials(search):
        about = json.loads((tmp_path / f"sweep/out/trials/{trial}/environment.json").read_text())
        assert about["ranks"] == 2
    client = MlflowClient(store)
    runs = client.search_runs([client.get_experiment_by_name("attvae").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(runs) == 3
    assert len(nested) == 2
    assert {run.info.status for run in runs} == {"FINISHED"}
    found = sorted(nested, key=lambda run: run.data.tags["sweep.rank"])
    losses = [run.data.metrics["val/nelbo_nats"] for run in found]
    assert losses == sorted(losses)
    for each in nested:
        steps = [metric.step for metric in client.get_metric_history(each.info.run_id, "val/nelbo_nats")]
        assert steps == [500, 1000]


def test_pbt_hands_over_weights_and_optimizer_states(digits: Path, tmp_path: Path) -> None:
    """One of the two learns nothing by itself: what it has after the exchange is the other's."""
    search = search_file(
        tmp_path / "sweep",
        digits,
        space={"train.lr": {"choice": [1e-7, 1e-2]}},
        trials=2,
        samples=20_000,  # so that the one is there still when the other, which starts later, has its turn
        seed=3,
        scheduler={"kind": "pbt", "every": 1500, "quantile": 0.5, "resample": 0.0},
    )
    run(search)
    rows = trials(search)
    assert {row["status"] for row in rows.values()} == {"finished"}
    began = {trial: yaml.safe_load((tmp_path / f"sweep/out/trials/{trial}/config.yaml").read_text()) for trial in rows}
    poor, good = sorted(began, key=lambda trial: began[trial]["train"]["lr"])
    alone, after, source = (
        {row["samples_seen"]: row["val/nelbo_nats"] for row in read(journal) if "val/nelbo_nats" in row}
        for journal in (
            tmp_path / f"sweep/out/trials/{poor}/metrics.jsonl",
            tmp_path / f"sweep/out/trials/{poor}/gen-001/metrics.jsonl",
            tmp_path / f"sweep/out/trials/{good}/metrics.jsonl",
        )
    )
    handed_over = Path(
        yaml.safe_load((tmp_path / f"sweep/out/trials/{poor}/gen-001/config.yaml").read_text())["resume"]
    )
    assert handed_over.parents[1].name == good
    at = int(handed_over.name)
    first = min(after)
    assert first == at + 500, "it goes on where the other was"
    assert abs(after[first] - source[at]) < 2.0
    assert min(alone.values()) > source[at] + 50.0, "without the weights it would not be there"


def test_what_cannot_run_is_refused_at_once(digits: Path, tmp_path: Path) -> None:
    search = search_file(tmp_path / "sweep", digits)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        assert "nobody answers" in run(search, "--address", address, expected=2)
    assert "Ray has" in run(search, "ranks=100", expected=2)
    assert not (tmp_path / "sweep/out").exists()


@pytest.fixture
def head() -> Iterator[str]:
    """The address of a cluster of one node that asks for a token."""
    with ray_head(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64) as address:
        yield address


def test_a_cluster_that_asks_for_a_token(digits: Path, tmp_path: Path, head: str) -> None:
    search = search_file(tmp_path / "sweep", digits, trials=1, samples=1000)
    (tmp_path / "home").mkdir()
    nobody = {"HOME": str(tmp_path / "home"), "RAY_AUTH_MODE": "token"}
    began = time.monotonic()
    assert "token" in run(search, "--address", head, expected=2, **nobody)
    assert time.monotonic() - began < 60
    run(search, "--address", head, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)
    assert [row["status"] for row in trials(search).values()] == ["finished"]
    assert not processes_of(tmp_path / "sweep/out")
