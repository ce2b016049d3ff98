"""What scanners say of the chart and the container files: nothing that is not excused here, each with its reason."""

import json
from pathlib import Path

import pytest
import yaml

from tests.deploy.tools import CHART, CI_VALUES, ROOT, rendered, run, tool

BY_NAME = pytest.mark.parametrize("values", CI_VALUES, ids=lambda path: path.stem.removesuffix("-values"))

EXCUSED = {
    "CKV_K8S_8": "the pod of `helm test` runs once, and has nothing to probe",
    "CKV_K8S_9": "the same",
    "CKV_K8S_11": "no CPU limits: throttling is felt as a pause in every stream",
    "CKV_K8S_15": "IfNotPresent: tags are versions, never `latest`, and a digest may be given",
    "CKV_K8S_35": "vLLM reads its key, and Hugging Face its token, from the environment alone",
    "CKV_K8S_38": "the gateway's token is for `discovery: kubernetes`; `dns` mounts none",
    "CKV_K8S_40": "workers run as 2000, the user of vLLM's image",
    "CKV_K8S_43": "digests are of a registry: values of whoever installs",
}


def found_by_trivy(values: Path) -> list[str]:
    """The titles of what is HIGH or CRITICAL in the chart with these values."""
    quiet = ["--skip-check-update", "--skip-version-check", "--disable-telemetry", "--quiet"]
    what = ["--severity", "HIGH,CRITICAL", "--helm-values", values, "--helm-api-versions", "monitoring.coreos.com/v1"]
    done = run(tool("trivy"), "config", *quiet, "--format", "json", *what, CHART)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["Results"]
    return [found["Title"] for result in results for found in result.get("Misconfigurations", [])]


@BY_NAME
def test_trivy_finds_nothing_high(values: Path) -> None:
    assert found_by_trivy(values) == []


def test_trivy_does_find_a_pod_that_is_not_hardened(tmp_path: Path) -> None:
    values = yaml.safe_load((CHART / "ci/minimal-values.yaml").read_text())
    container = {"name": "x", "image": "x:1", "securityContext": {"privileged": True}}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": [container]}}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump({**values, "extraObjects": [pod]}))
    assert "Privileged" in found_by_trivy(tmp_path / "values.yaml")


def test_checkov_finds_nothing_that_is_not_excused(tmp_path: Path) -> None:
    for values in CI_VALUES:
        (tmp_path / f"{values.stem}.yaml").write_text(rendered("--values", str(values)))
    checkov = [tool("checkov"), "--directory", tmp_path, "--framework", "kubernetes", "--skip-download", "--output", "json"]
    report = json.loads(run(*checkov).stdout)
    assert report["summary"]["passed"] > 2000
    failed = {check["check_id"]: f"{check['check_name']}: {check['resource']}" for check in report["results"]["failed_checks"]}
    assert {id: what for id, what in failed.items() if id not in EXCUSED} == {}
    assert set(failed) == set(EXCUSED), "an excuse that nothing needs any more"


@pytest.mark.parametrize("dockerfile", sorted(ROOT.glob("deploy/docker/Dockerfile.*")), ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(dockerfile: Path) -> None:
    done = run(tool("hadolint"), dockerfile)
    assert done.returncode == 0, done.stdout
