"""An S3 server (moto's) on loopback, as a process of its own that can be stopped and started again with its objects.

moto keeps objects in memory, so the folder to serve is put into the process before it listens: after a restart there
is no moment at which the server answers, but has nothing.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.request import ProxyHandler, Request, build_opener

from spawn import free_port

BUCKET = "attvae-test"
HOST = "127.0.0.1"


class S3Server:
    """Serves the files of a folder, by their paths in it, as objects of `BUCKET`; a context manager.

    Args:
        folder: its files at the moment of each start are served.
        log: file that gets a line for each request.
    """

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder = folder
        self.log = log
        self.port = free_port()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://{HOST}:{self.port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": HOST,
            "no_proxy": HOST,
        }
        """What a client needs."""
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, folder: str = "") -> str:
        """The address of a folder of the served one."""
        return f"s3://{BUCKET}/{folder}".rstrip("/")

    def start(self) -> None:
        """Returns when the server answers, after about two seconds."""
        assert self._process is None
        command = [sys.executable, __file__, str(self.port), str(self.folder)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | self.environment)
        deadline = time.monotonic() + 60
        while not _listens(self.port):
            assert self._process.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < deadline, "the S3 server does not start"
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends the server at once, in the middle of whatever it sends."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def requests(self, method: str, file: str) -> int:
        """How often a file was asked for since the first start."""
        asked = f"{method} /{BUCKET}/{file}"
        return sum(line == asked for line in self.log.read_text().splitlines())

    def check_keys(self, required: bool) -> None:
        """From now on refuses keys that it does not know, and it knows none; or takes any, as at the start."""
        body = b"0" if required else b"inf"
        request = Request(f"http://{HOST}:{self.port}/moto-api/reset-auth", body, {"Content-Type": "text/plain"})
        with build_opener(ProxyHandler({})).open(request) as answer:
            assert answer.status == 200

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((HOST, port)) == 0


def _serve(port: int, folder: Path) -> None:
    from moto.s3.models import s3_backends
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, run_simple

    class Handler(WSGIRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            print(self.command, self.path, flush=True)

    store = s3_backends["123456789012"]["aws"]  # moto's account
    store.create_bucket(BUCKET, "us-east-1")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.put_object(BUCKET, path.relative_to(folder).as_posix(), path.read_bytes())
    run_simple(HOST, port, DomainDispatcherApplication(create_backend_app), threaded=True, request_handler=Handler)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), Path(sys.argv[2]))
