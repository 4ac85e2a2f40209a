import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from data_prep.atomic import aside
from data_prep.process_pool import spread


def multiply(factor: int, number: int) -> tuple[int, int]:
    return factor * number, os.getpid()


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ValueError(f"{number} is bad")
    return number


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def sleep_or_fail(number: int) -> None:
    if number == 1:
        raise ValueError("enough")
    time.sleep(60)


def write_or_fail(folder: Path, number: int) -> None:
    partial_file = folder / "half.tmp"
    if number == 1:
        while not partial_file.exists():
            time.sleep(0.01)
        raise ValueError("enough")
    with aside(folder / "half"):
        time.sleep(60)


@pytest.mark.parametrize(("workers", "processes"), [(0, 1), (1, 1), (2, 2), (9, 3)])
def test_every_task_is_done_once(workers: int, processes: int) -> None:
    answers = list(spread(partial(multiply, 7), range(3), workers))
    assert sorted(product for product, _ in answers) == [0, 7, 14]
    assert len({pid for _, pid in answers}) <= processes
    assert (os.getpid() in {pid for _, pid in answers}) == (workers < 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_of_the_work(workers: int) -> None:
    with pytest.raises(ValueError, match="3 is bad"):
        list(spread(fail_at_three, range(8), workers))


def test_a_worker_that_is_killed() -> None:
    with pytest.raises(ChildProcessError, match=r"exit code -9 .* perhaps with fewer than 2 workers"):
        list(spread(die_at_three, range(8), 2))


def test_an_error_does_not_wait_for_the_others() -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match="enough"):
        list(spread(sleep_or_fail, range(2), 2))
    assert time.monotonic() - start < 30


def test_the_others_clean_up_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="enough"):
        list(spread(partial(write_or_fail, tmp_path), range(2), 2))
    assert not list(tmp_path.iterdir())
