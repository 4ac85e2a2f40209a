"""The RayJob against the official schemas and KubeRay's list of fields; its entrypoint for real, with a stub attvae."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_validate import ValidationError, latest_version, validate
from launched import REPOSITORY

# Fields of KubeRay 1.7.0: docs.ray.io, "KubeRay CRD API reference" (cluster/kubernetes/references/api.html).
FIELDS = {
    "RayJob": {"apiVersion", "kind", "metadata", "spec"},
    "RayJobSpec": {
        *("activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata"),
        *("clusterSelector", "submitterConfig", "managedBy", "deletionStrategy", "entrypoint", "runtimeEnvYAML"),
        *("jobId", "submissionMode", "entrypointResources", "entrypointNumCpus", "entrypointNumGpus"),
        *("ttlSecondsAfterFinished", "preRunningDeadlineSeconds", "shutdownAfterJobFinishes", "suspend"),
    },
    "RayClusterSpec": {
        *("upgradeStrategy", "authOptions", "suspend", "managedBy", "autoscalerOptions", "headServiceAnnotations"),
        *("enableInTreeAutoscaling", "gcsFaultToleranceOptions", "historyServerOptions", "networkPolicy"),
        *("tlsOptions", "headGroupSpec", "rayVersion", "workerGroupSpecs"),
    },
    "HeadGroupSpec": {
        *("template", "headService", "enableIngress", "ingressOptions", "resources", "labels", "rayStartParams"),
        "serviceType",
    },
    "WorkerGroupSpec": {
        *("suspend", "groupName", "replicas", "minReplicas", "maxReplicas", "idleTimeoutSeconds", "priority"),
        *("resources", "labels", "rayStartParams", "template", "scaleStrategy", "numOfHosts"),
    },
    "AuthOptions": {"enableK8sTokenAuth", "secretName", "mode"},
}
SUBMISSION_MODES = {"K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"}


def job() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((REPOSITORY / "launch/kuberay/sweep.yaml").read_text())
    return found


def cluster() -> dict[str, Any]:
    found: dict[str, Any] = job()["spec"]["rayClusterSpec"]
    return found


def templates() -> dict[str, dict[str, Any]]:
    workers = {group["groupName"]: group["template"] for group in cluster()["workerGroupSpecs"]}
    return {
        "submitter": job()["spec"]["submitterPodTemplate"],
        "head": cluster()["headGroupSpec"]["template"],
        **workers,
    }


def in_kubernetes(path: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load_all((REPOSITORY / "launch/kubernetes" / path).read_text())
    return {resource["kind"]: resource for resource in found}


def test_kuberay_knows_every_field() -> None:
    spec = cluster()
    found = [
        ("RayJob", job()),
        ("RayJobSpec", job()["spec"]),
        ("RayClusterSpec", spec),
        ("HeadGroupSpec", spec["headGroupSpec"]),
        ("AuthOptions", spec["authOptions"]),
        *(("WorkerGroupSpec", group) for group in spec["workerGroupSpecs"]),
    ]
    for kind, resource in found:
        assert resource.keys() <= FIELDS[kind], kind
    assert (job()["apiVersion"], job()["kind"]) == ("ray.io/v1", "RayJob")
    assert job()["spec"]["submissionMode"] in SUBMISSION_MODES
    assert spec["authOptions"]["mode"] == "token"
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values()), "KubeRay takes text only"


@pytest.mark.parametrize("version", ["1.34", latest_version()])
@pytest.mark.parametrize("name", ["submitter", "head", "gpu"])
def test_the_official_schemas_accept_each_pod(version: str, name: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, **templates()[name]}
    assert version.startswith(validate(pod, version, strict=True))
    pod["spec"]["securityContexts"] = {}
    with pytest.raises(ValidationError, match="securityContexts"):
        validate(pod, version, strict=True)


def test_the_options_are_those_of_ray_start() -> None:
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    for group in (cluster()["headGroupSpec"], *cluster()["workerGroupSpecs"]):
        assert {f"--{name}" for name in group["rayStartParams"]} <= known


def test_the_parts_fit_each_other_and_the_training_job() -> None:
    train = in_kubernetes("train.yaml")["Job"]["spec"]["template"]["spec"]
    claim = in_kubernetes("storage.yaml")["PersistentVolumeClaim"]["metadata"]["name"]
    [trained] = train["containers"]
    pins = (REPOSITORY / "constraints.txt").read_text().splitlines()
    assert f"ray=={cluster()['rayVersion']}" in pins
    assert cluster()["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert cluster()["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for name, template in templates().items():
        pod = template["spec"]
        [container] = pod["containers"]
        assert container["image"] == trained["image"]
        assert pod["securityContext"] == train["securityContext"]
        assert container["securityContext"] == trained["securityContext"]
        assert {each["name"] for each in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        if name == "submitter":
            continue
        assert container["volumeMounts"] == trained["volumeMounts"]
        claims = [volume["persistentVolumeClaim"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
        assert claims == [{"claimName": claim}]
        assert pod["terminationGracePeriodSeconds"] == train["terminationGracePeriodSeconds"]
    for word in shlex.split(job()["spec"]["entrypoint"]):
        assert word == shlex.quote(word), "what no shell would touch"


def test_what_the_entrypoint_searches_fits_the_workers() -> None:
    _, search, *overrides = shlex.split(job()["spec"]["entrypoint"])
    given = dict(word.split("=") for word in overrides if "=" in word)
    [group] = cluster()["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    assert (REPOSITORY / search).is_file()
    at_once = group["replicas"] * container["resources"]["limits"]["nvidia.com/gpu"]
    assert int(given["parallel"]) * int(given["gpus_per_rank"]) <= at_once


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The entrypoint's folder, with a stub of attvae."""
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch/sweep.sh").symlink_to(REPOSITORY / "launch/sweep.sh")
    (tmp_path / "bin").mkdir()
    stub = tmp_path / "bin/attvae"
    stub.write_text('#!/bin/sh\necho "$@"\nexit "$CODE"\n')
    stub.chmod(0o755)
    return tmp_path


def run(image: Path, command: str, code: int = 0) -> tuple[int, str]:
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=image,
        env={"PATH": f"{image / 'bin'}:{os.environ['PATH']}", "CODE": str(code)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout.strip() + done.stderr.strip()


def test_the_entrypoint_begins_the_sweep_then_goes_on_with_it(image: Path) -> None:
    command = job()["spec"]["entrypoint"].replace("/attvae/", f"{image}/")
    begun = "sweep " + command.partition(" ")[2]
    assert run(image, command) == (0, begun)
    folder = image / "runs/search/digits"
    folder.mkdir(parents=True)
    assert run(image, command) == (0, begun), "a folder that holds no sweep"
    (folder / "search.yaml").touch()
    for code in (0, 1, 2, 75):
        assert run(image, command, code) == (code, f"{begun} --resume")


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        ("configs/search/a.b.yaml trials=3", "runs/search/a.b"),
        ("x.yaml --out o", "o"),
        ("x.yaml --out=o --address h:1", "o"),
        ("x.yaml --out other --out o", "o"),
    ],
)
def test_the_folder_that_it_looks_into_is_that_of_the_sweep(image: Path, words: str, folder: str) -> None:
    (image / folder).mkdir(parents=True)
    (image / folder / "search.yaml").touch()
    assert run(image, f"launch/sweep.sh {words}") == (0, f"sweep {words} --resume")
    assert run(image, "launch/sweep.sh another.yaml") == (0, "sweep another.yaml")


@pytest.mark.parametrize("words", ["", "--out o x.yaml"])
def test_without_a_search_file_at_its_place_it_says_so(image: Path, words: str) -> None:
    code, said = run(image, f"launch/sweep.sh {words}")
    assert code == 2
    assert "the search file comes first" in said


def test_shellcheck_finds_nothing() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    found = subprocess.run([shellcheck, REPOSITORY / "launch/sweep.sh"], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stdout
