"""The folder of a sweep: what it searched, its trials' run folders, what came of them."""

from pathlib import Path

import yaml

from attvae.config import flatten, validated
from attvae.run_folder import write_text
from attvae.search.config import SearchConfig

_MAY_CHANGE = ("parallel", "nodes", "ranks", "cpus_per_rank", "gpus_per_rank", "retries")
"""Keys that a resumed sweep may change: they do not change what is tried, or what it is judged by."""


class SweepFolder:
    """Paths of a sweep. Nothing is created until `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.search = path / "search.yaml"
        self.trials = path / "trials"
        self.table = path / "trials.json"
        self.best = path / "best.yaml"
        self.page = path / "index.html"

    def open(self, search: SearchConfig, resume: bool) -> None:
        """Creates the folder and notes the search, or goes on with what was noted there.

        Raises:
            ValueError: it holds a sweep and `resume` is False, or none and it is True, or another search, or it cannot
                be written.
        """
        if resume and not self.search.is_file():
            raise ValueError(f"{self.path} holds no sweep that --resume could go on with: leave --resume out")
        if not resume and self.search.is_file():
            raise ValueError(f"{self.path} holds a sweep: go on with it by --resume, or choose another --out")
        if not resume and self.path.is_dir() and any(self.path.iterdir()):
            raise ValueError(f"{self.path} is not empty and holds no sweep: choose another folder with --out")
        if resume and (changed := self._changed(search)):
            raise ValueError(
                f"{self.path} holds a sweep of another search ({'; '.join(changed)}): go back to that search, or "
                "choose another folder with --out"
            )
        try:
            self.trials.mkdir(parents=True, exist_ok=True)
            write_text(self.search, search.to_yaml())
        except OSError as error:
            raise ValueError(
                f"cannot write the sweep's folder {self.path} ({error.strerror}): choose another with --out"
            ) from error

    def generations(self, trial_id: str) -> list[Path]:
        """The run folders of a trial in their order: one, and one more for each time that PBT changed it."""
        first = self.trials / trial_id
        return [first, *sorted(first.glob("gen-*"))]

    def _changed(self, search: SearchConfig) -> list[str]:
        noted = validated(SearchConfig, yaml.safe_load(self.search.read_text()), self.search)
        there, here = (flatten(each.model_dump(mode="json")) for each in (noted, search))
        return [
            f"{key}: {there.get(key)!r} there, {here.get(key)!r} here"
            for key in sorted(there.keys() | here.keys())
            if there.get(key) != here.get(key) and key not in _MAY_CHANGE
        ]
