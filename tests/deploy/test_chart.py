"""The chart renders with Helm 3 and 4 for every kind of site, and Kubernetes' own schemas accept what comes out."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from tests.deploy.crds import KINDS
from tests.deploy.tools import CHART, CI_VALUES, MONITORING_API, ROOT, default, objects, of_ci, rendered, run, tool

BY_NAME = pytest.mark.parametrize("values", CI_VALUES, ids=lambda path: path.stem.removesuffix("-values"))
OTHERS = ("monitoring.coreos.com/", "keda.sh/", "gateway.networking.k8s.io/")
UNKNOWN = re.compile(r"Couldn't find schema for kind (\w+) with api version (\S+)")


def test_there_are_values_for_eight_kinds_of_site() -> None:
    names = {path.stem.removesuffix("-values") for path in CI_VALUES}
    assert names == {
        *("default", "minimal", "full", "gpu-multi-model", "cpu-dev", "keda", "openshift", "existing-everything"),
    }


@BY_NAME
@pytest.mark.parametrize("helm", ["helm", "helm3"])
def test_helm_lints_it_strictly(helm: str, values: Path) -> None:
    done = run(tool(helm), "lint", CHART, "--strict", "--values", values)
    assert done.returncode == 0, done.stdout + done.stderr


@BY_NAME
def test_helm_3_and_4_render_the_same(values: Path) -> None:
    assert objects("--values", str(values), helm="helm3") == objects("--values", str(values), helm="helm")


OLDER = [(path, "1.29.0") for path in CI_VALUES if path.stem in ("default-values", "full-values", "existing-everything-values")]


@pytest.mark.parametrize(
    ("values", "version"), [*((path, "1.37.0") for path in CI_VALUES), *OLDER], ids=lambda x: getattr(x, "stem", x)
)
def test_kubernetes_schemas_accept_every_object(values: Path, version: str, tmp_path: Path) -> None:
    text = rendered("--values", str(values), f"--kube-version={version}")
    manifest = tmp_path / "all.yaml"
    manifest.write_text(text)
    done = run(tool("kubernetes-validate"), "-k", version, "--strict", manifest)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    unknown = {(api, kind) for kind, api in UNKNOWN.findall(said)}
    others = [each for each in yaml.safe_load_all(text) if each and each["apiVersion"].startswith(OTHERS)]
    assert unknown == {(each["apiVersion"], each["kind"]) for each in others}
    assert unknown <= set(KINDS), "a kind that neither kubernetes-validate nor crds.py knows"


@BY_NAME
def test_objects_of_other_operators_have_no_unknown_member(values: Path) -> None:
    for each in of_ci(values):
        if each["apiVersion"].startswith(OTHERS):
            KINDS[each["apiVersion"], each["kind"]].model_validate(each)


def test_a_misspelt_member_of_another_operators_object_is_caught() -> None:
    [rule] = [each for each in default("--set=monitoring.enabled=true") if each["kind"] == "ServiceMonitor"]
    rule["spec"]["endpoints"][0]["intervall"] = "5s"
    with pytest.raises(ValidationError, match="intervall"):
        KINDS[rule["apiVersion"], rule["kind"]].model_validate(rule)


@BY_NAME
def test_rendering_twice_is_the_same(values: Path) -> None:
    again = run(tool("helm"), "template", "r", CHART, "--namespace", "prod", MONITORING_API, "--values", values)
    assert again.stdout == rendered("--values", str(values))


def test_monitors_on_a_cluster_without_the_operator_are_a_sentence() -> None:
    values = CHART / "ci/default-values.yaml"
    done = run(tool("helm"), "template", "r", CHART, "--values", values, "--set=monitoring.enabled=true")
    assert done.returncode != 0
    assert "install the Prometheus operator, or turn it off" in done.stderr


def test_readme_and_schema_are_what_the_comments_of_the_values_say() -> None:
    done = run(ROOT / ".venv/bin/python", ROOT / "helm/generate.py", "--check")
    assert done.returncode == 0, done.stderr


def test_the_notes_say_how_to_go_on() -> None:
    command = [
        tool("helm"),
        "install",
        "r",
        CHART,
        "--dry-run=client",
        "--namespace=prod",
        "--values",
        CHART / "ci/default-values.yaml",
    ]
    done = run(*command)
    assert done.returncode == 0, done.stderr
    notes = done.stdout.split("NOTES:")[1]
    assert "kubectl -n prod port-forward svc/r-gateway 8000:80" in notes
    assert "llama has one worker" in notes
