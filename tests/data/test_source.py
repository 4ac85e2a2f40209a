"""Sources, against real servers on loopback: Python's own for http, moto's for S3."""

import base64
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import numpy as np
import pytest
import xxhash
from s3_server import S3Server
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from attvae.data import remote
from attvae.data.shard import Shard
from attvae.data.source import Source, open_source

SHARDS, SIZE = 6, 3_000_000
fork = get_context("fork")


def _content(number: int) -> bytes:
    return np.random.default_rng(number).bytes(SIZE)


def _shard(number: int) -> Shard:
    content = _content(number)
    xxh3 = xxhash.xxh3_64_hexdigest(content)
    return Shard(file=f"train-{number:06d}.tar", samples=1, bytes=len(content), xxh3=xxh3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every server serves: 18 MB in `set/`."""
    folder = tmp_path_factory.mktemp("served") / "set"
    folder.mkdir()
    for number in range(SHARDS):
        (folder / f"train-{number:06d}.tar").write_bytes(_content(number))
    (folder / "manifest.json").write_bytes(b"{}")
    return folder


def _holds(source: Source, number: int) -> bool:
    with open(source.open(_shard(number)), "rb") as file:
        return file.read() == _content(number)


def _check(source: Source) -> None:
    """What every source does."""
    names = [_shard(number).file for number in range(SHARDS)]
    assert source.read("manifest.json") == b"{}"
    assert source.sizes([*names, "train-000099.tar"]) == dict.fromkeys(names, SIZE)
    assert all(_holds(source, number) for number in (0, 1, 0))
    with pytest.raises(FileNotFoundError, match=r"labels.json"):
        source.read("labels.json")
    with pytest.raises(FileNotFoundError, match=r"train-000099.tar"):
        source.open(_shard(0).model_copy(update={"file": "train-000099.tar"}))
    source.prefetch([_shard(2), _shard(0).model_copy(update={"file": "train-000099.tar"})])
    assert _holds(source, 2)


def test_a_folder_is_read_in_place(folder: Path, tmp_path: Path) -> None:
    source = open_source(str(folder), tmp_path / "cache", 1, 5)
    _check(source)
    assert source.address == str(folder)
    assert source.sizes(["train-000000.tar"]) == {"train-000000.tar": SIZE}
    assert not (tmp_path / "cache").exists()


def test_any_address_of_fsspec_will_do(folder: Path, tmp_path: Path) -> None:
    _check(open_source(f"file://{folder}", tmp_path / "cache", 1, 5))
    fsspec.filesystem("memory").put(str(folder), "/far", recursive=True)
    _check(open_source("memory://far", tmp_path / "other", 1, 5))


class WebServer(ThreadingHTTPServer):
    """Serves a folder, and fails as it is told. Counts requests by method and file."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.requests: Counter[str] = Counter()
        self.url = f"http://127.0.0.1:{self.server_port}/set"
        self.ranges = False
        """Answer requests for a part of a file, as Python's server by itself does not."""
        self.break_after: list[int] = []
        """After how many bytes each of the next answers breaks off."""
        self.busy = 0
        """How many of the next requests get 503."""
        self.corrupt = 0
        """How many of the next answers have a flipped bit."""
        self.user = ""
        """USER:PASSWORD, if one is needed."""
        self.query = ""


class _Handler(SimpleHTTPRequestHandler):
    server: WebServer

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        server, parts = self.server, urlsplit(self.path)
        path = server.folder.parent / parts.path.lstrip("/")
        server.requests[f"{self.command} {path.name}"] += 1
        if server.user and self.headers["Authorization"] != f"Basic {base64.b64encode(server.user.encode()).decode()}":
            return self.send_error(401)
        if parts.query != server.query:
            return self.send_error(403)
        if server.busy:
            server.busy -= 1
            return self.send_error(503)
        if not path.is_file():
            return self.send_error(404)
        content, start = path.read_bytes(), 0
        if server.ranges and (part := self.headers["Range"]):
            start = int(part.removeprefix("bytes=").split("-")[0])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if server.corrupt and body:
            server.corrupt -= 1
            content = bytes([content[0] ^ 1]) + content[1:]
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if not body:
            return None
        end = len(content)
        if server.break_after:
            end = min(start + server.break_after.pop(0), end)
            self.close_connection = True
        self.wfile.write(content[start:end])
        server.requests["bytes"] += end - start
        if self.close_connection:
            time.sleep(0.1)  # time to read it
        return None

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = WebServer(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def s3_server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with S3Server(folder.parent, tmp_path_factory.mktemp("s3") / "log") as server:
        yield server


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


def test_a_web_server_is_asked_once_for_what_it_has(web: WebServer, tmp_path: Path) -> None:
    source = open_source(web.url, tmp_path, 1, 5)
    _check(source)
    assert [web.requests[f"GET train-{number:06d}.tar"] for number in range(SHARDS)] == [1, 1, 1, 0, 0, 0]


def test_four_processes_share_one_download(web: WebServer, tmp_path: Path) -> None:
    source = open_source(web.url, tmp_path, 1, 5)
    source.read("manifest.json")
    processes = [fork.Process(target=lambda: sys.exit(not all(_holds(source, n) for n in (0, 1)))) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    assert web.requests["GET train-000000.tar"] == web.requests["GET train-000001.tar"] == 1


@pytest.mark.parametrize("ranges", [False, True])
def test_a_connection_that_breaks_goes_on(
    web: WebServer, tmp_path: Path, ranges: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    web.ranges = ranges
    web.break_after = [SIZE // 4, SIZE // 2]
    assert _holds(open_source(web.url, tmp_path, 1, 20), 0)
    assert web.requests["GET train-000000.tar"] == 3
    from_the_start = SIZE // 4 + SIZE // 2 + SIZE
    assert SIZE <= web.requests["bytes"] < from_the_start if ranges else web.requests["bytes"] == from_the_start
    assert capfd.readouterr().err.count("does not answer") >= 1


def test_a_server_that_is_busy_is_asked_again_and_that_is_said_once(
    web: WebServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    web.busy = 2
    assert open_source(web.url, tmp_path, 1, 20).read("manifest.json") == b"{}"
    assert web.requests["GET manifest.json"] == 3
    assert capfd.readouterr().err.splitlines() == [
        f"attvae: {web.url} does not answer (HTTP 503): trying again for up to 20 s",
        f"attvae: {web.url} answers again",
    ]


def test_a_server_that_stays_away_is_given_up(web: WebServer, tmp_path: Path) -> None:
    web.busy = 1000
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"manifest.json has not answered for 1 s \(HTTP 503\): run the same"):
        open_source(web.url, tmp_path, 1, 1).read("manifest.json")
    assert time.monotonic() - start < 2
    assert web.requests["GET manifest.json"] > 1


def test_damaged_bytes_are_fetched_again_once(web: WebServer, tmp_path: Path) -> None:
    source = open_source(web.url, tmp_path, 1, 5)
    web.corrupt = 1
    assert _holds(source, 0)
    assert web.requests["GET train-000000.tar"] == 2
    web.corrupt = 2
    damaged = xxhash.xxh3_64_hexdigest(bytes([_content(1)[0] ^ 1]) + _content(1)[1:])
    expected = (
        rf"{web.url}/train-000001.tar has XXH3 {damaged}, the manifest says .* {_shard(1).xxh3} \(fetched twice\)"
    )
    with pytest.raises(ValueError, match=expected):
        source.open(_shard(1))
    assert web.requests["GET train-000001.tar"] == 2
    assert _holds(source, 1)


def test_another_size_than_the_manifest_says_is_an_error(web: WebServer, tmp_path: Path) -> None:
    source = open_source(web.url, tmp_path, 1, 5)
    with pytest.raises(ValueError, match=rf"has {SIZE} bytes, the manifest says {SIZE + 1}"):
        source.open(_shard(0).model_copy(update={"bytes": SIZE + 1}))
    with pytest.raises(ValueError, match=rf"has more bytes, the manifest says {SIZE - 1}"):
        source.open(_shard(0).model_copy(update={"bytes": SIZE - 1}))
    assert not list(tmp_path.iterdir())


def test_what_is_missing_or_refused_is_not_asked_for_again(web: WebServer, tmp_path: Path) -> None:
    source = open_source(web.url, tmp_path, 1, 60)
    with pytest.raises(FileNotFoundError, match=rf"{web.url} has no labels.json"):
        source.read("labels.json")
    assert web.requests["GET labels.json"] == 1
    web.user = "anna:secret"
    for refused in (lambda: source.read("manifest.json"), lambda: source.open(_shard(0))):
        with pytest.raises(ValueError, match=r"access refused \(HTTP 401\): put user and password into ~/.netrc"):
            refused()
    with pytest.raises(ValueError, match=r"access refused \(HTTP 401\)"):
        source.sizes(["manifest.json"])


def test_a_password_or_token_reaches_the_server_and_no_message(
    web: WebServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    web.user, web.query = "anna:secret", "token=hidden"
    source = open_source(web.url.replace("//", "//anna:secret@") + "?token=hidden", tmp_path, 1, 0.5)
    assert source.address == web.url
    assert source.read("manifest.json") == b"{}"
    assert _holds(source, 0)
    assert source.sizes(["manifest.json"]) == {"manifest.json": 2}
    messages = []
    for change in ({"busy": 1000}, {"busy": 0, "query": "token=changed"}, {"user": "anna:changed"}):
        for name, value in change.items():
            setattr(web, name, value)
        for call in (lambda: source.read("manifest.json"), lambda: source.sizes(["x"]), lambda: source.open(_shard(1))):
            with pytest.raises((ValueError, ConnectionError)) as caught:
                call()
            messages.append(str(caught.value))
    web.server_close()
    with pytest.raises(ConnectionError) as caught:
        open_source(web.url.replace("//", "//anna:secret@"), tmp_path, 1, 0.5).read("manifest.json")
    said = " ".join([*messages, str(caught.value), capfd.readouterr().err])
    assert "503" in said
    assert "secret" not in said
    assert "hidden" not in said


def test_an_unknown_address_names_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^cannot use the address nosuch://x/y .*s3://BUCKET/FOLDER"):
        open_source("nosuch://x/y", tmp_path, 1, 5).read("manifest.json")


def test_s3(s3: S3Server, tmp_path: Path) -> None:
    source = open_source(s3.url("set"), tmp_path, 1, 5)
    _check(source)
    assert source.address == "s3://attvae-test/set"
    assert s3.requests("GET", "set/train-000001.tar") == 1


def test_s3_refuses_at_once_and_says_what_to_do(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.monotonic()
    calls = [lambda s: s.read("manifest.json"), lambda s: s.sizes(["manifest.json"]), lambda s: s.open(_shard(0))]
    for call in calls:
        with pytest.raises(ValueError, match=r"s3://no-such-bucket/set: there is no such bucket"):
            call(open_source("s3://no-such-bucket/set", tmp_path, 1, 60))
    s3.check_keys(True)
    try:
        for call in calls:
            with pytest.raises(ValueError, match=r"access refused \(HTTP 403.*set AWS_ACCESS_KEY_ID and AWS_SECRET_"):
                call(open_source(s3.url("set"), tmp_path, 1, 60))
    finally:
        s3.check_keys(False)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"access refused \(Unable to locate credentials\): set AWS_ACCESS_KEY_ID"):
        open_source(s3.url("set"), tmp_path, 1, 60).read("manifest.json")
    assert time.monotonic() - start < 10


def test_an_s3_server_that_dies_within_a_download_is_waited_for(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote, "PIECE", 30_000)  # 100 requests
    file = "set/train-000000.tar"
    before = s3.requests("GET", file)
    source = open_source(s3.url("set"), tmp_path, 1, 60)

    def interrupt() -> None:
        while s3.requests("GET", file) < before + 10:
            time.sleep(0.01)
        s3.stop()
        time.sleep(1)
        s3.start()

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        assert _holds(source, 0)
    finally:
        thread.join()
    assert before + 100 <= s3.requests("GET", file) <= before + 102  # went on where it was
    said = capfd.readouterr().err
    assert "trying again for up to 60 s" in said
    assert said.endswith("attvae: s3://attvae-test/set answers again\n")


class _Numbers(IterableDataset):
    """Each worker's shards, read where the DataLoader runs it."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __iter__(self) -> Iterator[tuple[int, bool, bytes]]:
        info = get_worker_info()
        for number in range(info.id, SHARDS, info.num_workers):
            self.source.prefetch([_shard(number)])
            yield number, _holds(self.source, number), self.source.read("manifest.json")


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_a_source_used_by_the_parent_works_in_forked_workers(
    scheme: str, s3: S3Server, web: WebServer, tmp_path: Path
) -> None:
    source = open_source(web.url if scheme == "http" else s3.url("set"), tmp_path, 1, 5)
    assert source.read("manifest.json") == b"{}"
    source.prefetch([_shard(number) for number in range(SHARDS)])
    assert _holds(source, 0)
    for _ in range(2):
        loader = DataLoader(
            _Numbers(source), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=20
        )
        assert sorted(map(tuple, loader)) == [(number, True, b"{}") for number in range(SHARDS)]
        for path in tmp_path.glob("*.tar"):
            path.unlink()
        process = fork.Process(target=lambda: sys.exit(not (_holds(source, 3) and source.read("manifest.json"))))
        process.start()
        process.join(20)
        assert process.exitcode == 0
    assert _holds(source, 4)


def test_what_is_fetched_ahead_is_here_when_it_is_needed(web: WebServer, tmp_path: Path) -> None:
    source = open_source(web.url, tmp_path, 1, 5)
    source.prefetch([_shard(number) for number in range(3)])
    deadline = time.monotonic() + 10
    while len(list(tmp_path.glob("*.tar"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    asked = web.requests.copy()
    assert all(_holds(source, number) for number in range(3))
    assert web.requests == asked


def test_fetching_ahead_fills_half_the_cache_at_most_and_fails_in_silence(
    web: WebServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = open_source(web.url, tmp_path, 4 * SIZE / 1e9, 30)
    source.prefetch([_shard(number) for number in range(SHARDS)])
    deadline = time.monotonic() + 10
    while len(list(tmp_path.glob("*.tar"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(list(tmp_path.glob("*.tar"))) == 2
    web.busy = 1
    source.prefetch([_shard(5)])
    while web.busy:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert _holds(source, 5)
    assert capfd.readouterr().err == ""


_PROGRAM = """
import signal, sys, socket
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it puts aside with SIGINT ignored
from pathlib import Path
from attvae.data.shard import Shard
from attvae.data.source import open_source
port, cache, how = sys.argv[1:]
shards = [Shard(file=f"train-{n:06d}.tar", samples=1, bytes=1000, xxh3=f"{n:016x}") for n in range(8)]
source = open_source(f"http://127.0.0.1:{port}/set", Path(cache), 1, 600)
if how == "prefetch":
    source.prefetch(shards)
    import time
    time.sleep(0.5)
print("waiting", flush=True)
if how == "open":
    source.open(shards[0])
"""


@pytest.mark.parametrize(
    ("listening", "how", "sent", "code"),
    [
        (True, "prefetch", None, 0),  # the end of the program waits for no thread
        (True, "open", signal.SIGINT, -signal.SIGINT),  # within a request
        (False, "open", signal.SIGINT, -signal.SIGINT),  # between two
        (False, "open", signal.SIGTERM, -signal.SIGTERM),
    ],
)
def test_waiting_ends_when_the_program_is_to_end(
    tmp_path: Path, listening: bool, how: str, sent: signal.Signals | None, code: int
) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listening:  # accepts connections, and never answers
            server.listen(16)
        command = [sys.executable, "-c", _PROGRAM, str(server.getsockname()[1]), str(tmp_path), how]
        environment = os.environ | {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        try:
            assert program.stdout.readline() == b"waiting\n"
            time.sleep(0.5 if sent else 0)
            start = time.monotonic()
            if sent:
                program.send_signal(sent)
            _, said = program.communicate(timeout=10)
            assert time.monotonic() - start < 3
            assert program.returncode == code, said
        finally:
            program.kill()
            program.wait()
