"""The parts of a sweep's driver that need no cluster: what it proposes, takes up again, and says of a loss."""

import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import PropertyMock, patch

import pytest
import yaml
from launched import REPOSITORY
from mlflow import MlflowClient

from attvae.search import driver, tune
from attvae.search.config import SearchConfig, load_search
from attvae.search.space import check
from attvae.search.standings import Standings
from attvae.search.sweep_folder import SweepFolder
from attvae.search.worker import Setting, TrialWorker, launch_config

PBT = {"scheduler": {"kind": "pbt", "every": 1000}, "trials": 2, "parallel": 2}


def search_of(folder: Path, digits: Path, **changes: Any) -> SearchConfig:
    tree = {
        "base": str(REPOSITORY / "configs/test/tiny.yaml"),
        "overrides": {"data.path": str(digits), "tracking.mlflow": False},
        "for_trials": {"eval.every": 500},
        "space": {"train.lr": {"loguniform": [1e-3, 3e-2]}},
        "samples": 3000,
        "searcher": "random",
        "trials": 3,
    }
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump(tree | changes))
    return load_search(file)


def written(folder: SweepFolder, search: SearchConfig, trial_id: str, lr: float) -> None:
    """The configuration with which a trial's first run folder is started."""
    file = launch_config(folder, folder.generations(trial_id)[0])
    file.parent.mkdir(exist_ok=True)
    file.write_text(driver._of_trial(search, trial_id, {"train.lr": lr}, {}).to_yaml())


def test_a_proposal_that_makes_no_run_is_a_failed_trial_and_the_sweep_goes_on(digits: Path, tmp_path: Path) -> None:
    space = {"model.posterior.low": {"uniform": [-6, 4]}, "model.posterior.high": {"uniform": [3, 8]}}
    overrides = {"data.path": str(digits), "model.soft_clamp": "published"}
    search = search_of(tmp_path, digits, space=space, overrides=overrides, searcher="optuna", trials=200, seed=1)
    check(search)
    folder = SweepFolder(tmp_path / "out")
    with folder.owned(search, resume=False):
        standings = Standings(search, folder)
        proposals = driver._Proposals(search, folder, standings, {})
        for index in range(200):
            if proposals._begun(index) is None:
                break
        assert index >= 10
        (failed,) = standings.trials("failed")
        low, high = failed.config["model.posterior.low"], failed.config["model.posterior.high"]
        assert low >= high
        assert "must be below" in str(failed.reason)
        assert proposals._begun(index + 1) is not None or len(standings.trials("failed")) == 2


def test_what_pbt_had_changed_when_the_driver_was_killed(digits: Path, tmp_path: Path) -> None:
    search = search_of(tmp_path, digits, **PBT)
    folder = SweepFolder(tmp_path / "out")
    with folder.owned(search, resume=False):
        standings = Standings(search, folder)
        for trial_id, lr in (("t000", 0.002), ("t001", 0.011)):
            standings.begin(trial_id, {"train.lr": lr})
            written(folder, search, trial_id, lr)
        second = folder.trials / "t000" / "gen-001"
        second.mkdir(parents=True)
        launch_config(folder, second).write_text(driver._of_trial(search, "t000", {"train.lr": 0.0132}, {}).to_yaml())

        resumed = Standings(search, folder)
        proposals = driver._Proposals(search, folder, resumed, {})
        assert proposals._taken_up(resumed.trials("running")[0]) == ("t000", {"train.lr": 0.0132})
        resumed.end("t000", "finished")
        assert json.loads(folder.table.read_text())[0]["config"] == {"train.lr": 0.0132}


def test_every_exploit_counts_though_the_checkpoint_be_the_same(digits: Path, tmp_path: Path) -> None:
    search = search_of(tmp_path, digits, **PBT)
    folder = SweepFolder(tmp_path / "out")
    handover = tmp_path / "handover.json"
    winner = {"trial": "t001", "checkpoint": str(folder.trials / "t001/checkpoints/000000001000")}
    handover.write_text(json.dumps(winner))
    setting = Setting(folder.path, Path.cwd(), search.metric, 1, 1, 1.0, 0.0, {})
    worker = TrialWorker.__new__(TrialWorker)
    tried = []
    with (
        folder.owned(search, resume=False),
        patch.object(TrialWorker, "trial_id", new_callable=PropertyMock, return_value="t000"),
    ):
        written(folder, search, "t000", 0.002)
        for lr in (0.011, 0.011, 0.022):  # the second time its worker was lost
            worker.setup({"train.lr": lr}, setting=setting)
            worker.load_checkpoint(str(tmp_path))
            tried.append((worker._run.path.name, worker._cfg.train.lr, str(worker._cfg.resume)))
    taken = winner["checkpoint"]
    assert tried == [("gen-001", 0.011, taken), ("gen-001", 0.011, taken), ("gen-002", 0.022, taken)]


def test_a_loss_is_told_by_what_caused_it(tmp_path: Path) -> None:
    file = tmp_path / "error.txt"
    trial = SimpleNamespace(error_file=str(file))
    for told, reason in (
        (
            "The actor is dead because its worker process has died. Worker exit type: ...\n",
            "its worker, or the machine",
        ),
        ("Traceback ...\nray.exceptions.ActorDiedError: The actor died unexpectedly\n", "its worker, or the machine"),
        ("Traceback ...\nOSError: [Errno 28] No space left on device: 'x'\n", "OSError: [Errno 28] No space left"),
        ("attvae.search.worker.TrialLostError: a rank was ended by SIGKILL\n", "a rank was ended by SIGKILL"),
    ):
        file.write_text(f"Failure # 1 (occurred at noon)\nRayActorError\nFailure # 2 (occurred at one)\n{told}")
        assert driver._reason(trial).startswith(reason)


def test_a_sweep_that_cannot_read_its_trials_has_failed_in_mlflow_too(digits: Path, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/mlflow.db"
    overrides = {"data.path": str(digits), "tracking.uri": store, "tracking.artifacts": str(tmp_path / "artifacts")}
    search = search_of(tmp_path, digits, overrides=overrides)
    folder = SweepFolder(tmp_path / "out")
    with folder.owned(search, resume=False):
        folder.table.write_text("[{")
        with pytest.raises(ValueError, match=r"trials\.json is damaged"), driver._in_mlflow(search, folder):
            Standings(search, folder)
    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("attvae").experiment_id])
    assert run.info.status == "FAILED"


def test_no_password_of_the_environment_is_written(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hunter2secret@mlflow.example/")
    search = search_of(tmp_path, digits)
    assert "hunter2" not in driver._of_trial(search, "t000", {"train.lr": 0.01}, {}).to_yaml()


def test_what_listens_there_is_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "HEALTH_S", 4.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"what listens at --address {address} .* is no Ray"):
            tune._check_that_somebody_answers(address, address)


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "a..b:1", "host", ":1"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ValueError, match="--address"):
        tune._check_that_somebody_answers(address, address)
