"""A real MLflow server on loopback that a test can kill and start again, and one that accepts and never answers."""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from spawn import free_port

STARTS_S = 120  # seconds on a busy machine
ADMIN_PASSWORD = "a long one for tests"


class Server:
    """`mlflow server` over a backend. It keeps its port, so that it can be started again where clients look for it."""

    def __init__(self, folder: Path, backend: str | None = None, app: str | None = None) -> None:
        """
        Args:
            folder: gets the artifacts and the log.
            backend: SQLAlchemy URI; a SQLite file in the folder by default.
            app: "basic-auth" asks for user and password: `admin` and ADMIN_PASSWORD.
        """
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self._folder = folder
        self._backend = backend or f"sqlite:///{folder}/server.db"
        self._app = app
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self._backend]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        command += ["--app-name", self._app] if self._app else []
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_TRACKING")}
        environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        if self._app:
            settings = self._folder / "auth.ini"
            settings.write_text(
                f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{self._folder}/auth.db\n"
                f"admin_username = admin\nadmin_password = {ADMIN_PASSWORD}\n"
                "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            )
            environment |= {"MLFLOW_AUTH_CONFIG_PATH": str(settings), "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test"}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self._folder, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + STARTS_S
        while not self._is_healthy():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL to it and all that it has started."""
        if self._process is None:
            return
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(self._process.pid)
            for process in [root, *root.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait()
        self._process = None

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def mlflow_server(folder: Path, backend: str | None = None, app: str | None = None) -> Iterator[Server]:
    """A server that runs; gone afterwards."""
    server = Server(folder, backend, app)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def hanging_server() -> Iterator[str]:
    """The address of a server that accepts every connection, reads what comes, and never answers."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    accepted: list[socket.socket] = []

    def accept() -> None:
        with suppress(OSError):  # closed: the end
            while True:
                accepted.append(listener.accept()[0])

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in accepted:
            connection.close()
