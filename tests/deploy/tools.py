"""The tools of `make test-deploy` (deploy/locks/tools.py installs them), and the chart as they render it.

A test that needs what is not here is skipped with a line that says so; nothing is faked.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".tools"
CHART = ROOT / "helm/sluice"
CI_VALUES = sorted(CHART.glob("ci/*-values.yaml"))
MONITORING_API = "--api-versions=monitoring.coreos.com/v1"
IN_TOOLS = {
    "helm": "bin/helm",
    "helm3": "bin/helm3",
    "kubectl": "bin/kubectl",
    "kubernetes-validate": "tools/bin/kubernetes-validate",
    "trivy": "tools/bin/trivy",
    "hadolint": "tools/bin/hadolint",
    "checkov": "checkov/bin/checkov",
}

Object = dict[str, Any]


def tool(name: str) -> str:
    """The path of a tool; the test is skipped where there is none."""
    path = str(TOOLS / IN_TOOLS[name]) if name in IN_TOOLS else shutil.which(name)
    if path is None or not os.path.exists(path):
        pytest.skip(f"THERE IS NO {name} HERE: see what `python3 deploy/locks/tools.py` says")
    return path


def need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("THIS NEEDS ROOT")


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = tuple(str(part) for part in command)
    return subprocess.run(command, **{"capture_output": True, "text": True, "check": False, "timeout": 300} | options)


@contextmanager
def process(log: Path, *command: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the block, by SIGTERM and then, if need be, by SIGKILL."""
    with log.open("wb") as out:
        started = subprocess.Popen([str(part) for part in command], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(timeout=60)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def until(is_so: Callable[[], bool], what: str, said: Callable[[], str] = str, patience_s: float = 60) -> None:
    """Wait for it; what was said meanwhile is shown where it does not come."""
    deadline = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {patience_s} s: {what}\n{said()[-3000:]}"
        time.sleep(0.05)


def template(*arguments: str, helm: str = "helm", release: str = "r") -> subprocess.CompletedProcess[str]:
    command = [tool(helm), "template", release, str(CHART), "--namespace", "prod", MONITORING_API, *arguments]
    return run(*command)


@cache
def rendered(*arguments: str, helm: str = "helm", release: str = "r") -> str:
    done = template(*arguments, helm=helm, release=release)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(*arguments: str, helm: str = "helm", release: str = "r") -> list[Object]:
    """What the chart renders with these arguments of `helm template`."""
    text = rendered(*arguments, helm=helm, release=release)
    return [document for document in yaml.safe_load_all(text) if document]


def of_ci(path: Path, *more: str) -> list[Object]:
    return objects("--values", str(path), *more)


def default(*more: str) -> list[Object]:
    """The chart as the README shows it, and what is set besides."""
    return of_ci(CHART / "ci/default-values.yaml", *more)


def one(found: list[Object], kind: str, name: str) -> Object:
    [match] = [each for each in found if each["kind"] == kind and each["metadata"]["name"] == name]
    return match


def named(one_object: Object) -> tuple[str, str]:
    return one_object["kind"], one_object["metadata"]["name"]


def pod_templates(found: list[Object]) -> list[tuple[str, Object]]:
    """Name and pod (metadata and spec) of everything that runs containers."""
    pods = [(f"{each['kind']}/{each['metadata']['name']}", each["spec"]["template"]) for each in found if workload(each)]
    return pods + [(f"Pod/{each['metadata']['name']}", each) for each in found if each["kind"] == "Pod"]


def container(found: list[Object], kind: str, name: str) -> Object:
    """The one container of a workload."""
    [match] = one(found, kind, name)["spec"]["template"]["spec"]["containers"]
    return dict(match)


def workload(one_object: Object) -> bool:
    return one_object["kind"] in ("Deployment", "StatefulSet", "DaemonSet", "Job")
