"""Keeps a library from importing what it can do without."""

import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _Refusing:
    """A finder that does not find modules of these names, in the thread that made it."""

    def __init__(self, finder: Any, names: Collection[str]) -> None:
        self.finder = finder
        self._names = names
        self._thread = threading.get_ident()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name in self._names and threading.get_ident() == self._thread:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name: str) -> Any:  # such as find_distributions
        return getattr(self.finder, name)


@contextmanager
def refused_imports(*names: str) -> Iterator[None]:
    """Within it, and in this thread alone, modules of these names that are not imported yet count as not installed."""
    refusing = [_Refusing(finder, names) for finder in sys.meta_path]
    sys.meta_path[:] = refusing
    try:
        yield
    finally:  # a library may have added finders of its own
        sys.meta_path[:] = [finder.finder if finder in refusing else finder for finder in sys.meta_path]
