"""The trials of a sweep as its driver knows them: written to the sweep's folder as they change, and told on stdout."""

from collections.abc import Sequence

from attvae.search.config import SearchConfig
from attvae.search.results import read_trials, write_results
from attvae.search.space import Point, describe, planned_trials
from attvae.search.sweep_folder import SweepFolder
from attvae.search.trial import Status, Trial, finite, journal, read_trial
from attvae.tracking.secrets import without_secrets


class SweepFailedError(RuntimeError):
    """No trial has led to a figure."""


class Standings:
    """Begins with what trials.json holds."""

    def __init__(self, search: SearchConfig, folder: SweepFolder) -> None:
        self._search = search
        self._folder = folder
        self._trials = {trial.id: trial for trial in read_trials(folder)}

    def trials(self, *statuses: Status) -> list[Trial]:
        return [trial for trial in self._trials.values() if trial.status in statuses]

    def __len__(self) -> int:
        return len(self._trials)

    def ended(self, trial_id: str) -> Trial | None:
        found = self._trials[trial_id]
        return None if found.status == "running" else found

    def figures(self, trial_id: str) -> list[tuple[int, float]]:
        """(samples seen, metric) of a trial so far."""
        return finite(journal(self._folder.generations(trial_id)), self._search.metric)

    def write(self) -> None:
        """The results as they are now: a driver that was killed may have left them half-written."""
        write_results(self._search, self._folder, list(self._trials.values()))

    def begin(self, trial_id: str, point: Point) -> None:
        self._trials[trial_id] = Trial(id=trial_id, config=point, status="running")
        self.write()
        planned = planned_trials(self._search)
        self._tell(trial_id, f"begins, {len(self)} of {planned}: {describe(point)}")

    def taken_up(self, trial_id: str, point: Point) -> None:
        """A trial that was cut off with the sweep, and what its newest run folder tries."""
        self._trials[trial_id] = self._trials[trial_id].model_copy(update={"config": point})
        self._tell(trial_id, "goes on")

    def reported(self, trial_id: str, samples_seen: int, value: float) -> None:
        self._tell(trial_id, f"at {samples_seen:,} samples: {self._search.metric} {value:.4f}")

    def moved(self, trial_id: str, point: Point) -> None:
        """PBT has changed what a trial tries."""
        self._trials[trial_id] = self._trials[trial_id].model_copy(update={"config": point})
        self._tell(trial_id, f"goes on from a better one with {describe(point)}")

    def lost(self, trial_id: str, reason: str) -> None:
        """A trial that will be started again."""
        self._tell(trial_id, f"starts again: {without_secrets(reason)}")

    def end(self, trial_id: str, status: Status, reason: str | None = None) -> None:
        reason = without_secrets(reason) if reason else None
        found = read_trial(self._folder.generations(trial_id), trial_id, self._trials[trial_id].config, status, reason)
        self._trials[trial_id] = found
        self.write()
        figure = f", {self._search.metric} {found.figure(self._search.metric):.4f}" if found.val else ""
        self._tell(trial_id, f"{status} at {found.samples_seen:,} samples{figure}{f': {reason}' if reason else ''}")

    def check_that_one_worked(self) -> None:
        """
        Raises:
            SweepFailedError: all have failed.
        """
        failed: Sequence[Trial] = self.trials("failed")
        if len(failed) == len(self):
            raise SweepFailedError(f"all {len(failed)} trials have failed, the last one so: {failed[-1].reason}")

    def _tell(self, trial_id: str, what: str) -> None:
        print(f"{trial_id} {what}", flush=True)
