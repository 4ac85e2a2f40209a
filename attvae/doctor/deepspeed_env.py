"""`.deepspeed_env`: the variables that the `deepspeed` command takes to the other hosts (DeepSpeed 0.19).

It does so by itself with those that begin with MLFLOW, PYTHON, MV2 or UCX, on GPUs NCCL as well. Of this file it puts
each line as `export NAME=VALUE; ` before the command that it gives to each host's shell.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from attvae.doctor.check import Check

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NOT_QUOTED = re.compile(r'["$`\\\n]|%[hun%]')
"""What a shell still reads inside the double quotes that the launcher puts around a value, and what pdsh replaces."""

WANTED = re.compile(
    r"(NCCL|TORCH|PYTORCH|GLOO|TRITON|CUDA|OMP|MKL|AWS|FSSPEC)_\w+|DS_ACCELERATOR|"
    r"(SSL_CERT|CURL_CA|REQUESTS_CA)\w*|(?i:https?_proxy|no_proxy)"
)
"""What a run reads on each host: network, devices, threads, caches, the way to remote data."""

_EACH_HOST_ITS_OWN = {"CUDA_VISIBLE_DEVICES", "NCCL_HOSTID"}
_SECRET = re.compile(r"ACCESS_KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL", re.IGNORECASE)


class Written(NamedTuple):
    """What became of the variables of this environment: their names."""

    file: Path
    names: list[str]
    secrets: list[str]
    """Left out, for the launcher puts values into command lines, which all users of a host can read."""
    unquotable: list[str]
    """Left out, for pdsh or a shell would change their values."""


def file_to_write() -> Path:
    """The one in the working folder, or the one that DS_ENV_FILE names."""
    return Path(os.environ.get("DS_ENV_FILE", ".deepspeed_env"))


def files() -> list[Path]:
    """The files that the launcher reads, in its order."""
    name = file_to_write()
    return [file for file in dict.fromkeys([Path.home() / name, Path.cwd() / name]) if file.is_file()]


def check() -> Check:
    """Whether the launcher can read its files, and hands on what they say."""
    found = files()
    faults = [f"{file} line {number}: {fault}" for file in found for number, fault in _faults(file)]
    if faults:
        return Check(
            ".deepspeed_env",
            "problem",
            "\n".join(faults),
            "one NAME=VALUE a line: no blank line, no comment, no quotes",
        )
    if not found:
        return Check(".deepspeed_env", "ok", "none: the deepspeed command takes few variables to other hosts")
    names = [line.partition("=")[0].strip() for file in found for line in file.read_text().splitlines()]
    return Check(".deepspeed_env", "ok", f"{', '.join(map(str, found))}: {', '.join(dict.fromkeys(names))}")


def write(environment: Mapping[str, str]) -> Written:
    """Writes the file, with what each host needs of this environment.

    Raises:
        ValueError: the file is there already, or cannot be written.
    """
    wanted = {
        name: value
        for name, value in sorted(environment.items())
        if WANTED.fullmatch(name) and name not in _EACH_HOST_ITS_OWN
    }
    secrets = [name for name, value in wanted.items() if _SECRET.search(name) or _has_password(value)]
    unquotable = [name for name, value in wanted.items() if name not in secrets and _NOT_QUOTED.search(value)]
    names = [name for name in wanted if name not in secrets and name not in unquotable]
    path = file_to_write()
    try:
        with path.open("x") as file:
            file.writelines(f"{name}={wanted[name]}\n" for name in names)
    except FileExistsError:
        raise ValueError(f"{path} is there already: remove it first, or put its lines right by hand") from None
    except OSError as error:
        raise ValueError(f"cannot write {path} ({error.strerror}): name another file in DS_ENV_FILE") from error
    return Written(path, names, secrets, unquotable)


def _has_password(value: str) -> bool:
    """An address of the form scheme://name:password@host."""
    return re.search(r"://[^/@\s]+@", value) is not None


def _faults(file: Path) -> Iterable[tuple[int, str]]:
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        name, equals, value = line.partition("=")
        if not line.strip():
            yield number, "blank, on which the launcher crashes"
        elif line.lstrip().startswith("#"):
            what = "hides the rest of the command from each host's shell" if equals else "crashes the launcher"
            yield number, f"a comment, which {what}"
        elif not equals:
            yield number, f"{line!r} has no '=', on which the launcher crashes"
        elif not _NAME.fullmatch(name.strip()):
            yield number, f"{name!r} is no name of a variable"
        elif found := _NOT_QUOTED.search(value):
            yield number, f"the value of {name.strip()} has a {found[0]}, which pdsh or each host's shell replaces"
