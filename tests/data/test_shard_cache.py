"""The cache of a node, without a network: what a download brings is made up here."""

import errno
import mmap
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import xxhash

from attvae.data.shard import Shard
from attvae.data.shard_cache import ShardCache

SIZE = 100_000
fork = get_context("fork")


def _shard(number: int, size: int = SIZE) -> Shard:
    xxh3 = xxhash.xxh3_64_hexdigest(_content(number, size))
    return Shard(file=f"train-{number:06d}.tar", samples=1, bytes=size, xxh3=xxh3)


def _content(number: int, size: int = SIZE) -> bytes:
    return np.random.default_rng(number).bytes(size)


def _download(number: int, calls: Path | None = None, pause_s: float = 0.0) -> Callable[[int], None]:
    def download(target: int) -> None:
        if calls is not None:
            with calls.open("a") as file:
                file.write(f"{number}\n")
        content = _content(number)
        os.pwrite(target, content[: SIZE // 2], 0)
        time.sleep(pause_s)
        os.pwrite(target, content[SIZE // 2 :], SIZE // 2)

    return download


def _read(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()


def _numbers(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[-1][:6]) for path in folder.iterdir())


def test_processes_that_need_the_same_shard_download_it_once(tmp_path: Path) -> None:
    cache, calls = ShardCache(tmp_path / "cache", 1), tmp_path / "calls"

    def need() -> None:
        assert _read(cache.open(_shard(0), _download(0, calls, pause_s=0.3))) == _content(0)

    processes = [fork.Process(target=need) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    assert calls.read_text() == "0\n"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"{_shard(0).xxh3}-train-000000.tar"]


def test_the_least_recently_used_shard_makes_room_and_stays_readable_where_it_is_open(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 3 * SIZE / 1e9)
    first = [cache.open(_shard(number), _download(number)) for number in range(3)]
    view = mmap.mmap(first[1], 0, prot=mmap.PROT_READ)
    for number in (0, 2):
        assert _read(cache.open(_shard(number), _must_not)) == _content(number)
    (tmp_path / "notes.txt").write_bytes(b"x" * 10 * SIZE)
    _read(cache.open(_shard(3), _download(3)))
    (tmp_path / "notes.txt").unlink()
    assert _numbers(tmp_path) == [0, 2, 3]
    assert view[:] == _content(1)
    assert [_read(descriptor) for descriptor in first] == [_content(number) for number in range(3)]


def _must_not(target: int) -> None:
    raise AssertionError("it is here already")


def test_the_bound_holds_while_processes_fill_the_cache(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 3.5 * SIZE / 1e9)

    def use(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 8, 40):
            assert _read(cache.open(_shard(number), _download(number, pause_s=0.002))) == _content(number)

    processes = [fork.Process(target=use, args=(seed,)) for seed in range(4)]
    for process in processes:
        process.start()
    largest = 0
    while any(process.is_alive() for process in processes):
        total = 0
        for path in (tmp_path / "cache").glob("*"):
            # Files come and go while they are counted: only what is there under its name afterwards counts.
            try:
                total += path.stat().st_size if path.exists() else 0
            except FileNotFoundError:
                continue
        largest = max(largest, total)
        time.sleep(0.001)
    assert [process.exitcode for process in processes] == [0] * 4
    assert 2 * SIZE <= largest <= 3.5 * SIZE
    assert len(_numbers(tmp_path / "cache")) == 3


def test_a_killed_download_is_taken_over_and_leaves_nothing(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 1)
    processes = [
        fork.Process(target=lambda n=number: cache.open(_shard(n), _download(n, pause_s=60))) for number in (0, 1)
    ]
    for process in processes:
        process.start()
    while len(list(tmp_path.glob("*.part"))) < 2 or any(path.stat().st_size == 0 for path in tmp_path.glob("*.part")):
        time.sleep(0.01)
    waiting = fork.Process(target=lambda: _read(cache.open(_shard(0), _download(0))))
    waiting.start()
    time.sleep(0.2)
    assert waiting.is_alive()
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    waiting.join(10)
    assert waiting.exitcode == 0
    # Nobody asks for shard 1 again: its part goes when room is made next.
    assert _read(cache.open(_shard(0), _must_not)) == _content(0)
    _read(cache.open(_shard(2), _download(2)))
    assert not list(tmp_path.glob("*.part"))
    assert _numbers(tmp_path) == [0, 2]


def test_a_child_forked_within_a_download_does_not_keep_its_lock(tmp_path: Path) -> None:
    cache, children = ShardCache(tmp_path, 1), []

    def download(target: int) -> None:
        for action in (lambda: time.sleep(60), lambda: _read(cache.open(_shard(0), _must_not))):
            children.append(fork.Process(target=action))
            children[-1].start()
        time.sleep(0.2)
        _download(0)(target)

    try:
        os.close(cache.open(_shard(0), download))
        children[1].join(10)
        assert children[1].exitcode == 0
        assert children[0].is_alive()
    finally:
        for child in children:
            child.kill()
            child.join()


def test_a_download_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 1)

    def fail(target: int) -> None:
        os.pwrite(target, b"half", 0)
        raise FileNotFoundError("the source has no such shard")

    with pytest.raises(FileNotFoundError, match="no such shard"):
        cache.open(_shard(0), fail)
    assert not list(tmp_path.iterdir())
    assert _read(cache.open(_shard(0), _download(0))) == _content(0)


def test_what_is_fetched_ahead_waits_for_nobody(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 1.5 * SIZE / 1e9)
    process = fork.Process(target=lambda: cache.open(_shard(0), _download(0, pause_s=60)))
    process.start()
    try:
        while not any(path.stat().st_size for path in tmp_path.glob("*.part")):
            time.sleep(0.01)
        start = time.monotonic()
        cache.fetch(_shard(0), _must_not)  # someone is at it
        cache.fetch(_shard(1), _must_not)  # no room
        assert time.monotonic() - start < 1
    finally:
        process.kill()
        process.join()
    cache.fetch(_shard(1), _download(1))
    assert _read(cache.open(_shard(1), _must_not)) == _content(1)


def test_threads_that_fetch_ahead_do_not_hinder_each_other(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 1)
    for start in range(0, 200, 4):
        threads = [
            threading.Thread(target=cache.fetch, args=(_shard(number), _download(number)))
            for number in range(start, start + 4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert _numbers(tmp_path) == list(range(200))


def test_a_file_cut_short_by_a_power_failure_is_fetched_again(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 1)
    os.close(cache.open(_shard(0), _download(0)))
    next(tmp_path.iterdir()).write_bytes(b"")
    assert _read(cache.open(_shard(0), _download(0))) == _content(0)


def test_a_cache_smaller_than_a_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train-000000.tar has 0.000 GB.*raise data.cache_gb \(now 5e-05\)"):
        ShardCache(tmp_path, 0.00005).open(_shard(0), _must_not)


def test_a_full_disk_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        ValueError, match=rf"no space left .* cache {tmp_path}: free some, lower data.cache_gb \(now 1\)"
    ):
        ShardCache(tmp_path, 1).open(_shard(0), _must_not)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ValueError, match=r"cannot write to the cache .*choose another folder with data.cache"):
        ShardCache(tmp_path / "cache", 1).open(_shard(0), _must_not)
