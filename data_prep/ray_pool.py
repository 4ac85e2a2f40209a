"""Work spread over a Ray cluster. The only importer of ray here."""

import os
from collections.abc import Callable, Generator, Sequence
from itertools import islice
from typing import Any, TypeVar

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.exceptions import RayError, RayTaskError

Task = TypeVar("Task")
Result = TypeVar("Result")


def spread(work: Callable[[Task], Result], tasks: Sequence[Task], address: str) -> Generator[Result, None, None]:
    """What `work` gives for each task, whichever is done first.

    The cluster receives `work` once, with all that is bound to it. Its hosts need this package, and every path in
    `work` and `tasks` must lead to the same files there. A task whose host dies is run again on another.

    Args:
        address: `local` for a cluster of this machine alone, `auto` for the one that it belongs to, or HOST:PORT.

    Raises:
        What `work` raises.
        ValueError: there is no cluster at the address.
    """
    try:
        # Without the dashboard: it would be there for the minutes of this work only.
        ray.init(address, include_dashboard=False if address == "local" else None, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(f"no Ray cluster at --ray {address}: {error}") from None
    try:
        remote: Any = ray.remote(_run)
        shared = ray.put(work)
        waiting = iter(tasks)
        resources: dict[str, float] = ray.cluster_resources()
        # Two tasks for each processor: none of them waits, and the cluster's memory of tasks stays small.
        running = [remote.remote(shared, task) for task in islice(waiting, 2 * int(resources["CPU"]))]
        while running:
            done, running = ray.wait(running)
            running += [remote.remote(shared, task) for task in islice(waiting, len(done))]
            yield from map(_answer, done)
    finally:
        ray.shutdown()


def _run(work: Callable[[Task], Result], task: Task) -> Result:
    return work(task)


def _answer(done: ray.ObjectRef) -> Any:
    try:
        return ray.get(done)
    except RayTaskError as error:
        cause: BaseException = error.cause
    except RayError as error:
        cause = error
    if isinstance(cause, RayError):
        raise OSError(f"the Ray cluster lost a task; has every host this package and the source? {cause}")
    raise cause
