"""The script that `helm test` runs in a pod, against a real gateway."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.stack import MODEL, Gateway, fleet, gateway, routes
from tests.deploy.tools import default, one


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Gateway]:
    with fleet(tmp_path) as workers, gateway(tmp_path, routes(workers)) as running:
        yield running


def helm_test(url: str, models: list[str], key: str | None) -> subprocess.CompletedProcess[str]:
    """The pod's own command, with the variables that the chart sets."""
    [container] = one(default(), "Pod", "r-test")["spec"]["containers"]
    assert container["command"] == ["/opt/sluice/bin/python", "-c"]
    environment = {"SLUICE_URL": url, "SLUICE_AUTH": "keys", "SLUICE_MODELS": json.dumps(models)}
    assert set(environment) == {variable["name"] for variable in container["env"]}
    given = os.environ | environment | ({"SLUICE_KEY": key} if key else {})
    command = [sys.executable, "-c", *container["args"]]
    return subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=False)


def test_it_passes_where_every_model_is_listed(ours: Gateway) -> None:
    done = helm_test(ours.url, [MODEL], ours.keys["people"])
    assert (done.returncode, done.stdout) == (0, f"readyz: ok\nmodels: {MODEL}\n"), done.stderr


def test_it_fails_where_a_model_is_missing(ours: Gateway) -> None:
    done = helm_test(ours.url, [MODEL, "llama"], ours.keys["people"])
    assert done.returncode == 1
    assert "not listed by /v1/models: llama" in done.stderr


def test_without_a_key_it_says_what_it_did_not_ask_for(ours: Gateway) -> None:
    done = helm_test(ours.url, ["llama"], None)
    assert done.returncode == 0
    assert "no key (tests.existingSecret): the models were not asked for" in done.stdout


def test_it_fails_where_no_gateway_is_ready() -> None:
    assert helm_test("http://127.0.0.1:9", [MODEL], None).returncode != 0
