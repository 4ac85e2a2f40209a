"""launch/tracking/: a shared MLflow server with names and passwords, over PostgreSQL, as its users meet it."""

import base64
import json
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

import psutil
import pytest
import yaml
from launched import PLAIN, REPOSITORY, command, result, run, wait_for
from postgres import postgres
from spawn import free_port

FOLDER = REPOSITORY / "launch" / "tracking"
SECRETS = ["database_password", "admin_password", "cookie_key"]
PYTHONS = Path(sys.executable).parent


def found_by(*checker: str | Path) -> str:
    """What a checker says of a file, which is expected to be in order."""
    done = subprocess.run(checker, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_shellcheck_and_hadolint_find_nothing() -> None:
    assert not found_by(PYTHONS / "shellcheck", FOLDER / "serve.sh")
    assert not found_by(PYTHONS / "hadolint", FOLDER / "Dockerfile")


def test_the_compose_file_is_of_the_schema_and_closed_to_the_network() -> None:
    found_by(PYTHONS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", FOLDER / "compose.yaml")
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    database, server = compose["services"]["database"], compose["services"]["server"]
    assert server["ports"] == ["127.0.0.1:5000:5000"]
    assert "ports" not in database
    assert compose["networks"]["database"] == {"internal": True}
    assert re.fullmatch(r"postgres:\d+\.\d+-\w+", database["image"])
    assert compose["secrets"].keys() == set(SECRETS) == set(server["secrets"])
    assert (FOLDER / server["build"]["context"] / server["build"]["dockerfile"]).resolve() == FOLDER / "Dockerfile"


@pytest.mark.slow  # needs an apt package
def test_systemd_takes_the_unit_and_finds_it_closed(tmp_path: Path) -> None:
    assert shutil.which("systemd-analyze"), "no systemd-analyze on this machine: run tests/install_systemd.sh"
    unit = tmp_path / "attvae-mlflow.service"
    text = (FOLDER / unit.name).read_text()
    unit.write_text(text.replace("/opt/attvae-mlflow/serve.sh", str(FOLDER / "serve.sh")))
    assert not found_by("systemd-analyze", "verify", "--man=no", unit)
    found_by("systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", unit)
    assert re.findall(r"^LoadCredential=(\w+):/etc/attvae-mlflow/\1$", text, flags=re.MULTILINE) == SECRETS


class Setup(NamedTuple):
    environment: dict[str, str]
    secrets: dict[str, str]


def setup(folder: Path, database: str, database_password: str) -> Setup:
    """The environment of serve.sh as the systemd unit gives it, and the secrets that are in its files."""
    values = dict(zip(SECRETS, [database_password, secrets.token_urlsafe(16), secrets.token_hex(24)], strict=True))
    for name in ("secrets", "runtime"):
        (folder / name).mkdir()
    for name, value in values.items():
        (folder / "secrets" / name).write_text(value + "\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "TRACKING_"))}
    return Setup(
        environment
        | {
            "PATH": f"{PYTHONS}:{os.environ['PATH']}",
            "CREDENTIALS_DIRECTORY": str(folder / "secrets"),
            "RUNTIME_DIRECTORY": str(folder / "runtime"),
            "TRACKING_DATABASE": database,
            "TRACKING_ARTIFACTS": str(folder / "artifacts"),
        },
        values,
    )


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    environment, _ = setup(tmp_path, "postgresql+psycopg2://mlflow@127.0.0.1/mlflow", "secret")

    def refusal(**changed: str) -> str:
        done = subprocess.run(
            [FOLDER / "serve.sh"], env=environment | changed, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 2, done.stdout + done.stderr
        return done.stderr

    assert "TRACKING_DATABASE is not set" in refusal(TRACKING_DATABASE="")
    assert "TRACKING_ARTIFACTS is not set" in refusal(TRACKING_ARTIFACTS="")
    told = refusal(TRACKING_DATABASE="postgresql://mlflow:planted@127.0.0.1/mlflow")
    assert "database_password" in told
    assert "planted" not in told
    (tmp_path / "secrets" / "admin_password").write_text("")
    assert f"no secret {tmp_path}/secrets/admin_password" in refusal()


def test_the_command_is_closed_to_the_network_and_free_of_secrets(tmp_path: Path) -> None:
    environment, values = setup(tmp_path, "postgresql+psycopg2://mlflow@127.0.0.1/mlflow", "planted")
    stub = tmp_path / "bin" / "mlflow"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\necho "$@"\nenv | grep --extended-regexp "PASSWORD|SECRET" >&2\n')
    stub.chmod(0o755)
    environment["PATH"] = f"{stub.parent}:{environment['PATH']}"
    done = subprocess.run([FOLDER / "serve.sh"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("server --app-name basic-auth --host 127.0.0.1 --port 5000 ")
    settings = tmp_path / "runtime" / "attvae-mlflow-auth.ini"
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    for value in values.values():
        assert value in done.stderr
        assert value not in done.stdout + settings.read_text()


class Server(NamedTuple):
    url: str
    process: psutil.Process
    log: Path
    secrets: dict[str, str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tracking")
    with postgres(folder) as uri:
        found = re.fullmatch(r"(.+://\w+):(.+)(@.+)", uri)
        assert found is not None
        environment, values = setup(folder, found[1] + found[3], found[2])
        port, log = free_port(), folder / "server.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [FOLDER / "serve.sh"], env=environment | {"TRACKING_PORT": str(port)}, stdout=out, stderr=out
            )
        family = [psutil.Process(process.pid)]
        try:
            url = f"http://127.0.0.1:{port}"
            assert wait_for(lambda: process.poll() is not None or answers(url), 120), log.read_text()
            assert process.poll() is None, log.read_text()
            family += family[0].children(recursive=True)
            yield Server(url, family[0], log, values)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            _, alive = psutil.wait_procs(family, 10)
            assert not alive
        finally:
            for member in family:
                if member.is_running():
                    member.kill()


def ask(url: str, user: str = "", password: str = "", body: dict[str, Any] | None = None, method: str = "") -> Any:
    """The status, if it is no success, or the answer's JSON or text: what `curl --user` sends and gets."""
    request = Request(url, json.dumps(body).encode() if body else None, method=method or None)
    if body:
        request.add_header("Content-Type", "application/json")
    if user:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=30) as answer:
            text = answer.read().decode()
            return json.loads(text) if answer.headers.get_content_type() == "application/json" else text
    except HTTPError as error:
        return error.code


def answers(url: str) -> bool:
    try:
        return ask(f"{url}/health") == "OK"
    except URLError:
        return False


SEARCH = "/api/2.0/mlflow/experiments/search?max_results=5"


@pytest.mark.slow
def test_without_a_name_and_password_nothing_is_shown(server: Server) -> None:
    for path in ("/", SEARCH, "/api/2.0/mlflow-artifacts/artifacts", "/graphql", "/ajax-api/2.0/mlflow/users/current"):
        assert ask(server.url + path) == 401, path
        assert ask(server.url + path, "admin", "wrong") == 401, path
        assert ask(server.url + path, "admin", "password1234") == 401, path  # what MLflow once came with
    assert ask(server.url + SEARCH, "admin", server.secrets["admin_password"])["experiments"]


@pytest.mark.slow
def test_it_listens_on_loopback_alone(server: Server) -> None:
    family = [server.process, *server.process.children(recursive=True)]
    listening = {
        connection.laddr.ip
        for process in family
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    shown = " ".join(part for process in family for part in process.cmdline()) + server.log.read_text()
    assert not [name for name, value in server.secrets.items() if value in shown]


def new_user(server: Server, name: str) -> str:
    """A user's first password; made as README.md says."""
    password = secrets.token_urlsafe(16)
    body = {"username": name, "password": password}
    made = ask(f"{server.url}/api/2.0/mlflow/users/create", "admin", server.secrets["admin_password"], body)
    assert made["user"]["username"] == name
    return password


@pytest.mark.slow
def test_a_user_trains_and_another_reads_until_let_in(server: Server, digits: Path, tmp_path: Path) -> None:
    ann, bob = new_user(server, "ann"), new_user(server, "bob")
    out = tmp_path / "run"
    store = [PLAIN, "tracking.mlflow=true", f"tracking.uri={server.url}", "tracking.experiment=ann"]
    output = run(
        command(digits, out, *store), MLFLOW_TRACKING_USERNAME="ann", MLFLOW_TRACKING_PASSWORD=ann, NO_PROXY="127.0.0.1"
    )
    assert "takes no data" not in output
    run_id = json.loads((out / "mlflow.json").read_text())["run_id"]
    stored = ask(f"{server.url}/api/2.0/mlflow/runs/get?run_id={run_id}", "bob", bob)["run"]
    assert stored["info"]["status"] == "FINISHED"
    metrics = {metric["key"]: metric["value"] for metric in stored["data"]["metrics"]}
    assert metrics["test/nelbo_nats"] == pytest.approx(result(out)[0]["test"]["nelbo_nats"])
    files = ask(f"{server.url}/api/2.0/mlflow/artifacts/list?run_id={run_id}", "bob", bob)["files"]
    assert {"config.yaml", "summary.json"} <= {file["path"] for file in files}

    def bob_notes() -> Any:
        tag = {"run_id": run_id, "key": "note", "value": "mine"}
        return ask(f"{server.url}/api/2.0/mlflow/runs/set-tag", "bob", bob, tag)

    assert bob_notes() == 403
    experiment = {"resource_type": "experiment", "resource_id": stored["info"]["experiment_id"]}
    right = {"username": "bob", **experiment, "permission": "EDIT"}
    assert isinstance(ask(f"{server.url}/api/3.0/mlflow/users/permissions/grant", "ann", ann, right), dict)
    assert bob_notes() == {}
    another = {"username": "carol", "password": secrets.token_urlsafe(16)}
    assert ask(f"{server.url}/api/2.0/mlflow/users/create", "bob", bob, another) == 403


@pytest.mark.slow
def test_a_user_changes_the_password(server: Server) -> None:
    first, second = new_user(server, "dora"), secrets.token_urlsafe(16)
    change = {"username": "dora", "current_password": first, "password": second}
    assert ask(f"{server.url}/api/2.0/mlflow/users/update-password", "dora", first, change, "PATCH") == {}
    assert ask(server.url + SEARCH, "dora", second)["experiments"]
    # A worker may remember the old one for 15 s.
    time.sleep(16)
    assert {ask(server.url + SEARCH, "dora", first) for _ in range(8)} == {401}
