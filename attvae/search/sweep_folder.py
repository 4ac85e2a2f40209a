"""The folder of a sweep: what it searched, its trials' run folders, what came of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml

from attvae.all_or_nothing import PREFIX
from attvae.config import RunConfig, flatten, load, located
from attvae.owned_folder import owned
from attvae.run_folder import write_text
from attvae.search.config import SearchConfig

_MAY_CHANGE = ("parallel", "nodes", "ranks", "cpus_per_rank", "gpus_per_rank", "retries")
"""Keys that a resumed sweep may change: they do not change what is tried, or what it is judged by."""


_BEGUN = ("lock", "base.yaml")
"""What a driver leaves that was killed before there was a sweep, beside what it was writing."""

T = TypeVar("T", SearchConfig, RunConfig)


class SweepFolder:
    """Paths of a sweep. Nothing is created until `owned`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.search = path / "search.yaml"
        self.base = path / "base.yaml"
        """The base as it was when the sweep began, whole."""
        self.trials = path / "trials"
        self.table = path / "trials.json"
        self.best = path / "best.yaml"
        self.page = path / "index.html"

    def check(self, search: SearchConfig, resume: bool) -> None:
        """Whether a sweep may begin here, or go on. Changes nothing.

        Raises:
            ValueError: it holds a sweep and `resume` is False, or none and it is True, or another search, or other
                things.
        """
        if resume and not self.search.is_file():
            raise ValueError(f"{self.path} holds no sweep that --resume could go on with: leave --resume out")
        if not resume and self.search.is_file():
            raise ValueError(f"{self.path} holds a sweep: go on with it by --resume, or choose another --out")
        there = [each.name for each in self.path.iterdir()] if self.path.is_dir() else []
        if not resume and any(name not in _BEGUN and not name.startswith(PREFIX) for name in there):
            raise ValueError(f"{self.path} is not empty and holds no sweep: choose another folder with --out")
        if resume and (changed := self._changed(search)):
            raise ValueError(
                f"{self.path} holds a sweep of another search ({'; '.join(changed)}): go back to that search, or "
                "choose another folder with --out"
            )

    @contextmanager
    def owned(self, search: SearchConfig, resume: bool) -> Iterator[None]:
        """Creates the folder and notes the search, or goes on with what was noted there. One process a folder; the
        lock ends with it, however that ends.

        Raises:
            ValueError: as `check`, or another process owns it, or it cannot be written.
        """
        self.check(search, resume)
        with owned(self.path, "sweep"):
            self.check(search, resume)
            if not resume:
                write_text(self.base, load(search.base).to_yaml())
            write_text(self.search, search.to_yaml())  # from here on it is a sweep
            self.trials.mkdir(exist_ok=True)
            yield

    def generations(self, trial_id: str) -> list[Path]:
        """The run folders of a trial in their order: one, and one more for each time that PBT changed it."""
        first = self.trials / trial_id
        return [first, *sorted(first.glob("gen-*"))]

    def _changed(self, search: SearchConfig) -> list[str]:
        noted = self._noted(SearchConfig, self.search)
        there, here = (_as_noted(each) for each in (noted, search))
        changed = [
            f"{key}: {there.get(key)!r} there, {here.get(key)!r} here"
            for key in sorted(there.keys() | here.keys())
            if there.get(key) != here.get(key) and key not in _MAY_CHANGE
        ]
        if changed:
            return changed
        before, now = (
            flatten(each.model_dump(mode="json")) for each in (self._noted(RunConfig, self.base), load(search.base))
        )
        return [
            f"{key} in {search.base}: {before[key]!r} there, {now.get(key)!r} here"
            for key in before
            if before[key] != now.get(key)
        ]

    def _noted(self, kind: type[T], file: Path) -> T:
        try:
            return kind.model_validate(yaml.safe_load(file.read_text()))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ValueError(
                f"{file} is damaged ({' '.join(str(error).split())}): mend it, or choose another folder with --out"
            ) from None


def _as_noted(search: SearchConfig) -> dict[str, Any]:
    """Dotted keys; the base wherever it is named from."""
    base = str(located(search.base).resolve())
    return flatten({**search.model_dump(mode="json"), "base": base})
