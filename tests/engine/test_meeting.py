"""How ranks meet at MASTER_ADDR:MASTER_PORT, and do not where somebody else is."""

import os
import socket
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from spawn import free_port, run_on_ranks
from torch.distributed import HashStore  # type: ignore[attr-defined]

from attvae.engine import rendezvous
from attvae.engine.rendezvous import join, leave
from attvae.engine.stop import STOPPED


def as_rank_1(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)


def test_a_program_that_is_no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        as_rank_1(monkeypatch, port)
        with pytest.raises(
            ConnectionError, match=f"rank 1 on .* finds another program, .* at 127.0.0.1:{port}, .*port"
        ):
            join()


WAITER = """
from attvae.engine.rendezvous import join
from attvae.engine.stop import StopRequest
stop = StopRequest()
listening = stop.listening()
listening.__enter__()
print("waits", flush=True)
join(stop)
"""


def test_asked_to_stop_before_all_have_met() -> None:
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    process = subprocess.Popen(
        [sys.executable, "-c", WAITER], stdout=subprocess.PIPE, text=True, env={**os.environ, **ranks}
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        time.sleep(0.5)
        process.terminate()
        assert process.wait(4) == STOPPED
    finally:
        process.kill()
        process.wait()


def another_run_on_the_same_port() -> tuple[str, float]:
    """While this run goes on, a rank 1 of another one comes."""
    world = join()
    said = ""
    if world.rank == 1:
        try:
            join()
        except ConnectionError as error:
            said = str(error)
    total = float(world.sum(torch.tensor(1.0)))
    leave()
    return said, total


def test_ranks_of_another_run() -> None:
    (_, total), (said, total_1) = run_on_ranks(another_run_on_the_same_port, 2)
    assert "finds another program, or another run, at 127.0.0.1:" in said
    assert total == total_1 == 2, "the run that was there first goes on"


def test_a_first_rank_that_ends_just_after_they_have_met(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(HashStore):
        def add(self, *_: object) -> int:
            raise dist.DistNetworkError("Connection reset by peer")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "host-a")
    monkeypatch.setenv("MASTER_PORT", "29500")
    store = Gone()
    store.set("device/0", "cpu")
    monkeypatch.setattr(rendezvous, "_meet", lambda rank, timeout: (store, 1, 2))
    with pytest.raises(ConnectionError, match=r"rank 0 on host-a, or the launcher there, .* is gone: Connection reset"):
        rendezvous.meet(device="cpu")
