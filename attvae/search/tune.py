"""A sweep, from the command: Ray is started or joined, the trials run, and Ray is left as it was."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attvae.search.config import SearchConfig

ANSWER_S = 10.0
"""How long the host of a Ray cluster may take to answer."""

HEALTH_S = 20.0
"""How long its Ray may take to say that it is well."""


def sweep(search: SearchConfig, out: Path, address: str | None, resume: bool) -> None:
    """Runs the trials of a search and leaves its results in `out`.

    Args:
        search: checked by attvae.search.space.check.
        address: HOST:PORT of a Ray cluster, or auto for the one that this machine belongs to; None: a Ray of this
            machine alone, which begins and ends with the sweep.
        resume: go on with the sweep that is in `out`.

    Raises:
        ValueError: no cluster, too small a cluster, or a folder that is not for this sweep.
        OSError: the folder cannot be written.
        SweepFailedError: every trial has failed.
    """
    with ray_cluster(address):
        from attvae.search.driver import run

        run(search, out.absolute(), resume)


@contextmanager
def ray_cluster(address: str | None) -> Iterator[None]:
    """Ray for the time of a block; `address` as in `sweep`.

    Raises:
        ValueError: no cluster.
    """
    if address is not None and address.startswith("ray://"):
        raise ValueError(f"--address {address} is a Ray client's: give the cluster's own, HOST:PORT (6379 by default)")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "logging_level": "error"}
    if address is None:
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's switch by which all its ports are on the loopback
        options["include_dashboard"] = False
        os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: a trial is a training like any other
    os.environ |= {
        "RAY_AIR_NEW_OUTPUT": "0",  # prints though it is told not to
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the driver has its own
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the run folders have it all
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a report of failure has no figure
    }
    import ray
    from ray._private.services import canonicalize_bootstrap_address
    from ray.exceptions import AuthenticationError, RayError

    if address is not None:  # ray.init waits for minutes where nobody answers
        try:
            host = canonicalize_bootstrap_address(address) if address == "auto" else address
        except ConnectionError:
            host = None
        _check_that_somebody_answers(address, host)

    where = f"a Ray of this machine ({socket.gethostname()})" if address is None else f"the Ray cluster at {address}"
    try:
        ray.init(**options)
    except AuthenticationError as error:
        raise ValueError(
            f"{where} asks for a token and this one is missing or wrong: put the cluster's into RAY_AUTH_TOKEN, "
            f"RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token ({_first_line(error)})"
        ) from None
    except (ConnectionError, RuntimeError, ValueError, OSError, RayError) as error:
        raise ValueError(f"{where} cannot be reached or started: {_first_line(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_that_somebody_answers(asked: str, address: str | None) -> None:
    remedy = "start Ray with `ray start --head`, or leave --address out for a Ray of this machine alone"
    if address is None:
        raise ValueError(f"--address {asked}: this machine belongs to no Ray cluster: {remedy}")
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise ValueError(f"--address {address} is not of the form HOST:PORT, nor auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"nobody answers at --address {asked} ({address}: {why}): {remedy}") from None
    ask = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        subprocess.run(ask, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=HEALTH_S)
    except subprocess.TimeoutExpired:  # what it says otherwise, ray.init says better
        raise ValueError(
            f"what listens at --address {asked} ({address}) is no Ray, or one that does not answer within "
            f"{HEALTH_S:g} s: {remedy}"
        ) from None


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
