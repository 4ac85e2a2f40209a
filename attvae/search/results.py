"""What a sweep leaves: trials.json, best.yaml and a page. Each is written anew, and whole, whenever a trial ends."""

import json
from collections.abc import Sequence
from typing import Any

from attvae.run_folder import write_json, write_text
from attvae.search.config import Pbt, SearchConfig
from attvae.search.page import page
from attvae.search.space import best_config, describe, planned_trials
from attvae.search.sweep_folder import SweepFolder
from attvae.search.trial import Trial, best_of, figures_of_test


def write_results(search: SearchConfig, folder: SweepFolder, trials: Sequence[Trial]) -> None:
    """Replaces trials.json, best.yaml and the page. There is no best.yaml as long as no trial has ended with a figure.

    Raises:
        OSError: the folder cannot be written.
    """
    best = best_of(trials, search.metric)
    if best is not None:
        test = figures_of_test(folder.generations(best.id))
        trials = [trial.model_copy(update={"test": test if trial.id == best.id else None}) for trial in trials]
    write_json(folder.table, [_row(trial) for trial in trials])
    if best is not None:
        write_text(folder.best, best_yaml(search, folder, best))
    write_text(folder.page, page(search, folder, trials))


def read_trials(folder: SweepFolder) -> list[Trial]:
    """What trials.json holds; nothing if there is none yet.

    Raises:
        ValueError: it is damaged.
    """
    if not folder.table.is_file():
        return []
    try:
        return [Trial.model_validate(row) for row in json.loads(folder.table.read_text())]
    except ValueError as error:
        raise ValueError(f"{folder.table} is damaged ({error}): mend it") from error


def best_yaml(search: SearchConfig, folder: SweepFolder, best: Trial) -> str:
    """An ordinary configuration, complete, with what it is as a comment before it."""
    cfg = best_config(search, best.config)
    first, last = f"# The best of sweep {search.name}", f"#   attvae train {folder.best}"
    figure = best.figure(search.metric)
    lines = [
        f"{first}: trial {best.id} of {planned_trials(search)}, {search.metric} {figure:.4f} at {best.samples_seen:,} "
        "samples, chosen by the validation images.",
        f"# {search.base} with {describe(best.config)}; to be trained in full, {cfg.train.samples:,} samples:",
        last,
    ]
    if isinstance(search.scheduler, Pbt):
        lines.insert(
            2, "# Under pbt its keys have changed on the way: these are the last ones, the figure is not theirs alone."
        )
    return "\n".join(lines) + "\n" + cfg.to_yaml()


def _row(trial: Trial) -> dict[str, Any]:
    row = trial.model_dump(mode="json")
    return {key: value for key, value in row.items() if value is not None or key not in ("reason", "test")}
