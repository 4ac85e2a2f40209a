"""What a sweep looks like on a terminal: its plan beforehand, its trials afterwards."""

from collections.abc import Sequence
from pathlib import Path

from attvae.search.config import STARTUP_TRIALS, Asha, SearchConfig
from attvae.search.lines import figure_text
from attvae.search.results import read_trials
from attvae.search.space import Point, first_points, format_value, planned_trials
from attvae.search.sweep_folder import SweepFolder
from attvae.search.trial import ranked
from attvae.tracking.console import print_table

_SHOWN = 20


def show_sweep_plan(search: SearchConfig) -> None:
    """What `--dry-run` says."""
    trials = planned_trials(search)
    ranks = f"{search.ranks} rank{'s' * (search.ranks > 1)}"
    machines = f" on {search.nodes} machines" if search.nodes > 1 else ""
    at_once = min(search.parallel, trials) * search.ranks
    gpus = f", {at_once * search.gpus_per_rank:g} GPUs" if search.gpus_per_rank else ""
    print_table(
        f"Sweep {search.name}, if it were started",
        ("", "value"),
        [
            ("base", str(search.base)),
            ("metric, less is better", search.metric),
            ("searcher", search.searcher),
            ("scheduler", search.scheduler.kind),
            ("trials", f"{trials}, {min(search.parallel, trials)} at a time, each of {ranks}{machines}"),
            ("samples", _samples(search, trials)),
            ("resources at a time", f"{at_once * search.cpus_per_rank:g} CPUs{gpus}"),
        ],
    )
    points = first_points(search)
    _show_points("The first trials" if len(points) > _SHOWN else "The trials", search, points[:_SHOWN])
    if search.searcher == "optuna" and trials > STARTUP_TRIALS:
        print(f"These {STARTUP_TRIALS} are drawn at random; optuna chooses the others by what comes of these.")
    elif len(points) > _SHOWN:
        print(f"{len(points) - _SHOWN} more follow.")


def show_sweep(search: SearchConfig, out: Path) -> None:
    """The trials of a sweep, the best first, and where to go on."""
    folder = SweepFolder(out)
    trials = read_trials(folder)
    rows = [
        (
            trial.id,
            trial.status,
            figure_text(trial.figure(search.metric)),
            f"{trial.samples_seen:,}",
            *(format_value(trial.config.get(key, "–")) for key in search.space),
        )
        for trial in ranked(trials, search.metric)
    ]
    print_table(f"Sweep {search.name}", ("trial", "status", search.metric, "samples seen", *search.space), rows)
    for trial in trials:
        if trial.status == "failed":
            print(f"trial {trial.id} failed: {trial.reason}")
    print(f"look at it: {folder.page}")
    if folder.best.is_file():
        print(f"train the best in full: attvae train {folder.best}")
    else:
        print("no trial has ended with a figure: there is no best.yaml")


def _samples(search: SearchConfig, trials: int) -> str:
    most = f"{trials} x {search.samples:,} = {trials * search.samples:,} images at most"
    if isinstance(search.scheduler, Asha):
        return f"{most}, {trials * search.scheduler.first_rung:,} at least (all stopped at the first rung)"
    return most


def _show_points(title: str, search: SearchConfig, points: Sequence[Point]) -> None:
    rows = [
        (str(index), *(format_value(point.get(key, "–")) for key in search.space)) for index, point in enumerate(points)
    ]
    print_table(title, ("", *search.space), rows)
