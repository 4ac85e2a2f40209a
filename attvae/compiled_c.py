"""Functions in C, which the machine's own compiler turns into code: tenths of a second each, the first time on a host.

Every operation is rounded by itself (-ffp-contract=off), and none is left out or reordered, as Intel's compiler does by
default (-fno-fast-math): results depend neither on the compiler nor on the processor.
"""

import hashlib
import os
import platform
import shutil
import subprocess
from contextlib import suppress
from ctypes import CDLL
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory

import torch
from torch import Tensor
from torch.autograd import forward_ad

FLAGS = ("-O3", "-march=native", "-fno-fast-math", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC")
PATIENCE_S = 60
"""For a compilation."""

GRAIN = 2**15
"""Elements for which one more thread is worth it; torch's figure."""


@cache
def compiled(source: Path) -> CDLL | str:
    """The functions of a C file, or why there are none.

    What was compiled is kept for later processes in the user's cache (`$XDG_CACHE_HOME/attvae`, by default
    ~/.cache/attvae), under a name for all that it depends on, and is trusted only if nobody else could write it.
    """
    compiler = os.environ.get("CC", "").split() or ["cc"]
    kept = _kept(source, compiler)
    if kept is not None and _is_private(kept):
        with suppress(OSError):  # such as a folder from which nothing may be executed
            return CDLL(str(kept))
    try:
        temporary = TemporaryDirectory(prefix=f"attvae-{source.stem}-")
    except OSError as error:
        return f"there is no temporary folder to compile in: {error}"
    with temporary as folder:
        library = Path(folder) / f"{source.stem}.so"
        command = [*compiler, *FLAGS, str(source), "-lm", "-o", str(library)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=PATIENCE_S, check=False
            )
            if done.returncode:
                said = done.stderr.strip().splitlines()
                return f"the C compiler {compiler[0]} failed: {said[0] if said else f'exit code {done.returncode}'}"
            loaded = CDLL(str(library))  # stays so without its file
        except (FileNotFoundError, PermissionError):
            return f"there is no C compiler {compiler[0]}"
        except subprocess.TimeoutExpired:
            return f"the C compiler {compiler[0]} did not end within {PATIENCE_S} s"
        except OSError as error:  # such as a temporary folder from which nothing may be executed
            return f"what the C compiler {compiler[0]} made cannot be loaded: {error}"
        if kept is not None:
            _keep(library, kept)
        return loaded


def _kept(source: Path, compiler: list[str]) -> Path | None:
    """Named for the source and the headers beside its folder, the compiler and its flags, and the processor.

    None: the user has no home.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if not folder.is_absolute():
        return None
    found = shutil.which(compiler[0])
    known = hashlib.sha256(repr((compiler, found, found and os.stat(found)[6:9], FLAGS, platform.machine())).encode())
    for path in (source, *sorted(source.parent.parent.glob("*.h"))):
        known.update(path.read_bytes())
    with suppress(OSError):  # Linux only
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        known.update(
            "".join(dict.fromkeys(line for line in lines if line.startswith(("model name", "flags")))).encode()
        )
    return folder / "attvae" / f"{source.stem}-{known.hexdigest()[:32]}.so"


def _is_private(path: Path) -> bool:
    try:
        found = [each.lstat() for each in (path.parent, path)]
    except OSError:
        return False
    return all(each.st_uid == os.getuid() and not each.st_mode & 0o022 for each in found)


def _keep(library: Path, kept: Path) -> None:
    """Whole or not at all; where that is not possible the next process compiles again."""
    with suppress(OSError):
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=kept.parent, delete=False) as part:
            try:
                part.write(library.read_bytes())
                part.flush()
                os.fsync(part.fileno())
                os.replace(part.name, kept)
            except OSError:
                os.unlink(part.name)


def threads_for(elements: int) -> int:
    """How many threads a function takes for them."""
    return max(1, min(torch.get_num_threads(), elements // GRAIN))


def left_to_torch() -> str | None:
    """Why what is computed now must be torch's operations; None if it may be in C, which torch does not see."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return "a graph of torch's operations is made"
    if forward_ad._current_level >= 0:
        return "it has no derivatives in forward mode"
    return None


def can_take(*tensors: Tensor) -> bool:
    """Whether they are numbers that C finds in memory, float32 on the CPU outside autocast, and may compute with."""
    return (
        left_to_torch() is None
        and not torch.is_autocast_enabled("cpu")
        and all(tensor.is_cpu and tensor.dtype == torch.float32 for tensor in tensors)
    )
