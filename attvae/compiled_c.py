"""Functions in C, which the machine's own compiler turns into code at the start: tenths of a second each.

Every operation is rounded by itself (-ffp-contract=off), and none is left out or reordered, as Intel's compiler does by
default (-fno-fast-math): results depend neither on the compiler nor on the processor.
"""

import os
import subprocess
from ctypes import CDLL
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

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
    """The functions of a C file, or why there are none. Compiles it once in a process."""
    compiler = os.environ.get("CC", "").split() or ["cc"]
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
            return CDLL(str(library))  # stays loaded without its file
        except (FileNotFoundError, PermissionError):
            return f"there is no C compiler {compiler[0]}"
        except subprocess.TimeoutExpired:
            return f"the C compiler {compiler[0]} did not end within {PATIENCE_S} s"
        except OSError as error:  # such as a temporary folder from which nothing may be executed
            return f"what the C compiler {compiler[0]} made cannot be loaded: {error}"


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
