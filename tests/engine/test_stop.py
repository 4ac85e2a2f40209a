"""Requests to stop, in processes of their own: the second one ends a process."""

import signal
import subprocess
import sys
import time

import pytest

LISTENER = """
import sys, time
from attvae.engine.stop import StopRequest
stop = StopRequest()
listening = stop.listening()
listening.__enter__()
if sys.argv[1] != "starting":
    stop.work_begins()
print("listening", flush=True)
while stop.reason is None:
    time.sleep(0.01)
print(stop.reason, flush=True)
if sys.argv[1] == "saved":
    stop.saved()
    time.sleep(4)
    sys.exit(75)
import threading
lock = threading.Lock()
lock.acquire()
lock.acquire()  # for ever, as in a collective that another rank never enters
"""


def listener(how: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", LISTENER, how], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "listening\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_the_second_one_ends_at_once(number: signal.Signals) -> None:
    process = listener("stuck")
    assert process.stdout is not None
    try:
        process.send_signal(number)
        assert process.stdout.readline() == f"{number.name}\n"
        process.send_signal(number)  # passed on by a launcher: the same request
        time.sleep(2.5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(2) == 1
    finally:
        process.kill()
        process.wait()


def test_what_is_saved_ends_as_it_wants() -> None:
    process = listener("saved")
    process.send_signal(signal.SIGTERM)
    time.sleep(2.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 75


def test_before_there_is_anything_to_save_it_ends_at_once() -> None:
    process = listener("starting")
    process.send_signal(signal.SIGTERM)
    assert process.wait(2) == 75
