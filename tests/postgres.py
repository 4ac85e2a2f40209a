"""A PostgreSQL server of one's own, on loopback; it and its data are gone afterwards."""

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launched import wait_for
from spawn import free_port

PROGRAMS = Path("/usr/lib/postgresql")
USER = "mlflow"


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The SQLAlchemy URI, with user and password, of an empty database.

    Args:
        folder: gets the server's log. The data lie elsewhere: PostgreSQL does not run as root, and its user cannot
            enter the folders of root's tests.
    """
    found = sorted(PROGRAMS.glob("*/bin/initdb"), key=lambda path: int(path.parent.parent.name))
    if not found:
        raise FileNotFoundError(f"no initdb in {PROGRAMS}: run tests/install_postgres.sh")
    programs = found[-1].parent
    runs_as: dict[str, Any] = {"cwd": "/"}
    if os.geteuid() == 0:
        runs_as |= {"user": "postgres", "group": "postgres", "extra_groups": []}
    home, password, port = Path(tempfile.mkdtemp(prefix="postgres-")), secrets.token_urlsafe(12), free_port()
    log = folder / "postgres.log"
    folder.mkdir(parents=True, exist_ok=True)
    server = None
    try:
        (home / "password").write_text(password)
        if os.geteuid() == 0:
            for path in (home, home / "password"):
                shutil.chown(path, "postgres", "postgres")
        access = [f"--username={USER}", f"--pwfile={home / 'password'}", "--auth=scram-sha-256"]
        with log.open("ab") as out:
            subprocess.run(
                [programs / "initdb", *access, "--no-sync", "--no-locale", "--encoding=UTF8", home / "data"],
                check=True,
                stdout=out,
                stderr=out,
                **runs_as,
            )
            settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": home, "fsync": "off"}
            server = subprocess.Popen(
                [
                    programs / "postgres",
                    "-D",
                    home / "data",
                    *(f"--{name}={value}" for name, value in settings.items()),
                ],
                stdout=out,
                stderr=out,
                **runs_as,
            )
        address = ["--host=127.0.0.1", f"--port={port}"]
        is_ready: list[str | Path] = [programs / "pg_isready", "--quiet", *address]
        assert wait_for(lambda: subprocess.run(is_ready).returncode == 0, 30), log.read_text()
        # The driver is named: SQLAlchemy and MLflow disagree on which one is meant by postgresql:// alone.
        yield f"postgresql+psycopg2://{USER}:{password}@127.0.0.1:{port}/postgres"
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # a fast shutdown, which does not wait for clients
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.send_signal(signal.SIGQUIT)  # at once, with all of its processes
                server.wait(20)
        shutil.rmtree(home, ignore_errors=True)
