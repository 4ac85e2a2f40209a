"""The Kubernetes files against the official schemas; the Job's command and environment for real, without a cluster."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import SchemaNotFoundError, ValidationError, latest_version, validate
from launched import REPOSITORY, arguments, in_mlflow, processes_of, result, start, wait_for
from spawn import free_port

from attvae.tracking.jsonl import read

FILES = sorted((REPOSITORY / "launch" / "kubernetes").glob("*.yaml"))
OLDEST = "1.34"
"""Of Kubernetes: the first with podReplacementPolicy as a stable field."""


def resources() -> dict[str, dict[str, Any]]:
    return {found["kind"]: found for file in FILES for found in yaml.safe_load_all(file.read_text())}


def pod() -> dict[str, Any]:
    return resources()["Job"]["spec"]["template"]["spec"]


def container() -> dict[str, Any]:
    [only] = pod()["containers"]
    return only


@pytest.mark.parametrize("version", [OLDEST, latest_version()])
def test_the_official_schemas_know_and_accept_each_resource(version: str) -> None:
    kinds = [found["kind"] for file in FILES for found in yaml.safe_load_all(file.read_text())]
    assert sorted(kinds) == ["Job", "PersistentVolumeClaim", "Service"]
    for resource in resources().values():  # a kind or a field that it does not know is an exception
        assert version.startswith(validate(resource, version, strict=True))


def test_the_schemas_refuse_what_is_wrong() -> None:
    job = resources()["Job"]
    job["spec"]["completion"] = 2
    with pytest.raises(ValidationError, match="completion"):
        validate(job, OLDEST, strict=True)
    with pytest.raises(SchemaNotFoundError):
        validate(job | {"kind": "Jobb"}, OLDEST, strict=True)


def test_the_parts_fit_each_other() -> None:
    service, job = resources()["Service"], resources()["Job"]
    environment = {each["name"]: each.get("value") for each in container()["env"]}
    name, nodes = job["metadata"]["name"], job["spec"]["completions"]
    assert environment["PET_NNODES"] == str(nodes) == str(job["spec"]["parallelism"])
    assert environment["PET_MASTER_ADDR"] == f"{name}-0.{service['metadata']['name']}"
    assert pod()["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert int(environment["PET_MASTER_PORT"]) == service["spec"]["ports"][0]["port"]
    claims = [volume["persistentVolumeClaim"] for volume in pod()["volumes"] if "persistentVolumeClaim" in volume]
    assert claims == [{"claimName": resources()["PersistentVolumeClaim"]["metadata"]["name"]}]
    mounted = {each["name"] for each in container()["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod()["volumes"]}
    rules = job["spec"]["podFailurePolicy"]["rules"]
    by_code = {code: rule["action"] for rule in rules for code in rule.get("onExitCodes", {"values": []})["values"]}
    assert by_code == {2: "FailJob", 75: "Ignore"}
    for file in (*container()["command"][1:], *container()["args"]):
        assert (REPOSITORY / file).is_file()


def node(index: int, port: int, digits: Path, out: Path, *overrides: str) -> subprocess.Popen[str]:
    """What the Job starts on a node, with another configuration and addresses."""
    here = {
        "PET_NODE_RANK": str(index),
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(port),
        "PET_NPROC_PER_NODE": "1",
    }
    environment = {each["name"]: here.get(each["name"]) or each["value"] for each in container()["env"]}
    assert here.keys() < environment.keys()
    python, *command = container()["command"]
    assert python == "python"
    return start([sys.executable, *command, *arguments(digits, out, *overrides)], **environment)


def samples_logged(out: Path) -> int:
    rows = read(out / "metrics.jsonl")
    return int(rows[-1]["samples_seen"]) if rows else 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_of_the_job_runs_is_preempted_and_goes_on(digits: Path, tmp_path: Path) -> None:
    """Two nodes; one is asked to stop, as its pod's eviction would: both end with 75; the same again ends the run."""
    out, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    options = ("train.samples=5000", *in_mlflow(tmp_path))

    def nodes(folder: Path) -> list[subprocess.Popen[str]]:
        port = free_port()
        return [node(index, port, digits, folder, *options) for index in (1, 0)]

    def ended(started: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
        printed = [each.communicate(timeout=120)[0] for each in started]
        return [each.returncode for each in started], printed

    codes, printed = ended(nodes(undisturbed))
    assert codes == [0, 0], printed
    first = nodes(out)
    assert wait_for(lambda: samples_logged(out), 90)
    first[0].send_signal(signal.SIGTERM)
    codes, printed = ended(first)
    assert codes == [75, 75], printed
    assert not processes_of(out)
    assert 0 < samples_logged(out) < 5000
    codes, printed = ended(nodes(out))
    assert codes == [0, 0], printed
    assert result(out) == result(undisturbed)
