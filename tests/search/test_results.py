"""What a sweep leaves, from run folders as a run writes them."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from written_trials import METRIC, search_of, write_run

from attvae.all_or_nothing import PREFIX
from attvae.config import load
from attvae.search.config import SearchConfig
from attvae.search.results import read_trials, write_results
from attvae.search.show import show_sweep
from attvae.search.sweep_folder import SweepFolder
from attvae.search.trial import Trial, best_of, finite, journal, ranked, read_trial

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "configs/search/digits.yaml"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[SweepFolder]:
    folder = SweepFolder(tmp_path / "sweep")
    with folder.owned(search_of(), resume=False):
        yield folder


def four_trials(folder: SweepFolder) -> list[Trial]:
    """One stopped with the lowest figure, two that had the whole budget, one that failed."""
    write_run(folder.trials / "a", {5000: 40.0, 15000: 20.0})
    write_run(folder.trials / "b", {5000: 41.0, 60000: 24.0}, test=23.5)
    write_run(folder.trials / "c", {5000: 42.0, 60000: 23.0}, test=22.5)
    write_run(folder.trials / "d", {5000: math.nan})
    states: Sequence[tuple[str, dict[str, Any], Any, str | None]] = (
        ("a", {"train.lr": 0.001}, "stopped", "asha"),
        ("b", {"train.lr": 0.002}, "finished", None),
        ("c", {"train.lr": 0.003, "train.clip_norm": None}, "finished", None),
        ("d", {"train.lr": 0.004}, "failed", "DivergedError: training diverged"),
    )
    return [read_trial(folder.generations(key), key, point, status, why) for key, point, status, why in states]


def test_trials_json_is_what_it_says(folder: SweepFolder) -> None:
    write_results(search_of(), folder, four_trials(folder))

    def never(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    rows = json.loads(folder.table.read_text(), parse_constant=never)
    assert [row["id"] for row in rows] == ["a", "b", "c", "d"]
    assert rows[0] == {
        "id": "a",
        "config": {"train.lr": 0.001},
        "samples_seen": 15000,
        "status": "stopped",
        "val": {"nelbo_nats": 20.0, "bits_per_dim": 20 / 44.4, "nll_nats": 15.0, "kl_nats": 5.0},
        "reason": "asha",
    }
    assert rows[2]["config"] == {"train.lr": 0.003, "train.clip_norm": None}
    assert rows[2]["test"] == {"nelbo_nats": 22.5, "nll_nats": 17.5, "bits_per_dim": 22.5 / 44.4}
    assert [("test" in row, "reason" in row) for row in rows] == [
        (False, True),
        (False, False),
        (True, False),
        (False, True),
    ]
    assert rows[3]["val"] == {"kl_nats": 5.0}
    assert rows[3]["samples_seen"] == 5000


def test_it_is_read_again(folder: SweepFolder) -> None:
    assert read_trials(folder) == []
    trials = four_trials(folder)
    write_results(search_of(), folder, trials)
    assert [trial.model_copy(update={"test": None}) for trial in read_trials(folder)] == trials
    folder.table.write_text(folder.table.read_text()[:-10])
    with pytest.raises(ValueError, match=r"trials\.json is damaged"):
        read_trials(folder)


def test_best_yaml_is_the_base_with_the_best_trials_keys(folder: SweepFolder) -> None:
    write_results(search_of(), folder, four_trials(folder))
    expected = load(ROOT / "configs/demo.yaml", ["train.lr=0.003", "train.clip_norm=null"])
    assert load(folder.best) == expected
    assert expected.train.samples == 270_000
    assert yaml.safe_load(folder.best.read_text()) == expected.model_dump(mode="json")
    header = [line for line in folder.best.read_text().splitlines() if line.startswith("#")]
    assert "trial c of 12, val/nelbo_nats 23.0000 at 60,000 samples" in header[0]
    assert header[-1] == f"#   attvae train {folder.best}"


def test_a_choice_cannot_leave_the_header(folder: SweepFolder) -> None:
    trial = Trial(id="x", config={"data.path": "a\ntrain: {}"}, status="finished", val={"nelbo_nats": 1.0})
    write_results(search_of(), folder, [trial])
    assert load(folder.best) == load(ROOT / "configs/demo.yaml", ['data.path="a\\ntrain: {}"'])


def test_without_a_figure_there_is_no_best(folder: SweepFolder) -> None:
    write_results(search_of(), folder, [trial for trial in four_trials(folder) if trial.id == "d"])
    assert not folder.best.exists()
    assert folder.page.is_file()


def test_results_are_written_whole(folder: SweepFolder) -> None:
    write_results(search_of(), folder, four_trials(folder))
    names = {"lock", "base.yaml", "search.yaml", "trials", "trials.json", "best.yaml", "index.html"}
    assert {path.name for path in folder.path.iterdir()} == names


def test_rank(folder: SweepFolder) -> None:
    trials = four_trials(folder)
    assert [trial.id for trial in ranked(trials, METRIC)] == ["c", "b", "a", "d"]
    assert best_of(trials[:1], METRIC) == trials[0]  # where none had the whole budget
    assert best_of(trials[3:], METRIC) is None


def test_a_trial_that_pbt_has_changed_is_one_curve(folder: SweepFolder) -> None:
    """At 10,000 it goes on from a winner's checkpoint at 8,000; what it had done beyond does not count."""
    write_run(folder.trials / "p", {4000: 50.0, 8000: 49.0, 10000: 48.0})
    write_run(folder.trials / "p" / "gen-001", {9000: 30.0, 12000: 29.0}, test=28.0, start=8000)
    generations = folder.generations("p")
    assert finite(journal(generations), METRIC) == [(4000, 50.0), (8000, 49.0), (9000, 30.0), (12000, 29.0)]
    trial = read_trial(generations, "p", {"train.lr": 0.1}, "finished")
    assert (trial.samples_seen, trial.val["nelbo_nats"]) == (12000, 29.0)
    write_results(search_of(), folder, [trial])
    assert read_trials(folder)[0].test == {"nelbo_nats": 28.0, "nll_nats": 23.0, "bits_per_dim": 28 / 44.4}


def test_a_trial_without_a_run_folder_yet(folder: SweepFolder) -> None:
    assert read_trial(folder.generations("new"), "new", {}, "running") == Trial(id="new", config={}, status="running")


def test_the_terminal_names_the_best_first_and_why_one_failed(
    folder: SweepFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    write_results(search_of(), folder, four_trials(folder))
    show_sweep(search_of(), folder.path)
    said = capsys.readouterr().out
    assert [said.index(f"│ {key} ") for key in "cbad"] == sorted(said.index(f"│ {key} ") for key in "cbad")
    assert "trial d failed: DivergedError: training diverged" in said
    assert f"attvae train {folder.best}" in said


# ---------------------------------------------------------------------------------------------------------- the folder


def begin(folder: SweepFolder, search: SearchConfig, *, resume: bool) -> None:
    with folder.owned(search, resume):
        pass


def test_a_sweep_goes_on_where_it_is_asked_to(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    begin(folder, search_of(), resume=False)
    begin(folder, search_of("parallel=1", "retries=0"), resume=True)
    with pytest.raises(ValueError, match="holds a sweep: go on with it by --resume"):
        begin(folder, search_of(), resume=False)
    with pytest.raises(ValueError, match=r"another search .*samples: 60000 there, 50000 here"):
        begin(folder, search_of("samples=50000"), resume=True)


def test_it_is_the_same_search_from_whatever_folder_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    monkeypatch.chdir(ROOT)
    begin(folder, search_of("base=configs/demo.yaml"), resume=False)
    begin(folder, search_of(f"base={ROOT}/configs/demo.yaml"), resume=True)


def test_a_base_that_was_edited_meanwhile_is_another_search(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(f"base: {ROOT}/configs/demo.yaml\n")
    folder = SweepFolder(tmp_path / "sweep")
    begin(folder, search_of(f"base={base}"), resume=False)
    base.write_text(f"base: {ROOT}/configs/demo.yaml\ntrain: {{kl_start: 0.5}}\n")
    with pytest.raises(ValueError, match=rf"another search \(train\.kl_start in {base}: 0.0 there, 0.5 here\)"):
        begin(folder, search_of(f"base={base}"), resume=True)


@pytest.mark.parametrize("text", ["name: [", "", "name: digits\n"])
def test_a_damaged_search_is_named(tmp_path: Path, text: str) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    begin(folder, search_of(), resume=False)
    folder.search.write_text(text)
    with pytest.raises(ValueError, match=r"search\.yaml is damaged"):
        begin(folder, search_of(), resume=True)


def test_a_driver_that_was_killed_before_there_was_a_sweep_is_no_obstacle(tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path / "sweep")
    begin(folder, search_of(), resume=False)
    folder.trials.rmdir()
    (folder.path / f"{PREFIX}abc").mkdir()
    folder.search.rename(folder.path / f"{PREFIX}abc" / "search.yaml")
    begin(folder, search_of(), resume=False)


def test_a_folder_has_one_driver(folder: SweepFolder) -> None:
    other = f"""
from pathlib import Path
from attvae.search.config import load_search
from attvae.search.sweep_folder import SweepFolder
folder = SweepFolder(Path({str(folder.path)!r}))
with folder.owned(load_search(Path({str(DIGITS)!r})), resume=True):
    pass
"""
    ended = subprocess.run([sys.executable, "-c", other], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "another process runs the sweep" in ended.stderr


def test_there_is_nothing_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no sweep that --resume could go on with"):
        begin(SweepFolder(tmp_path / "none"), search_of(), resume=True)
    assert not (tmp_path / "none").exists()
    (tmp_path / "letter.txt").touch()
    with pytest.raises(ValueError, match="is not empty and holds no sweep"):
        begin(SweepFolder(tmp_path), search_of(), resume=False)
