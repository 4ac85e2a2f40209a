"""A virtual environment that holds what `pip install` of some requirements brings, and nothing else.

Made from the packages that are here: the requirements and all that they need, linked file by file. It takes seconds,
needs no index, and what the requirements forgot is missing as it would be elsewhere.
"""

import subprocess
import sysconfig
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement


class CleanEnvironment:
    def __init__(self, folder: Path, requirements: Iterable[str]) -> None:
        """
        Raises:
            AssertionError: another version is here than a requirement says.
        """
        venv.create(folder, with_pip=False)
        self._python = folder / "bin" / "python"
        packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        self.packages = packages_of(requirements)
        for name in self.packages:
            link(distribution(name), packages)

    def run(self, code: str, *arguments: str, cwd: Path, **environment: str) -> str:
        """What `code` prints; it sees no variable of this process but PATH."""
        ran = subprocess.run(
            [str(self._python), "-I", "-c", code, *arguments],
            cwd=cwd,
            env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout


def packages_of(requirements: Iterable[str]) -> set[str]:
    """Names of the requirements and of everything that they need here, in lower case with hyphens."""
    todo = [Requirement(text) for text in requirements]
    seen: set[tuple[str, str]] = set()
    while todo:
        requirement = todo.pop()
        found = distribution(requirement.name)
        assert requirement.specifier.contains(found.version, prereleases=True), f"{requirement}, but {found.version}"
        for extra in requirement.extras or {""}:
            key = requirement.name.lower().replace("_", "-"), extra
            if key in seen:
                continue
            seen.add(key)
            needed = [Requirement(text) for text in found.requires or []]
            todo += [need for need in needed if need.marker is None or need.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def link(package: Distribution, into: Path) -> None:
    for file in package.files or []:
        if ".." not in file.parts and "__pycache__" not in file.parts and (source := Path(file.locate())).exists():
            target = into / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                target.symlink_to(source)
