"""What docs/operations.md tells an operator to write and to type is what the chart and the command take."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from sluice.config import load
from tests.deploy.tools import ROOT, objects

TEXT = (ROOT / "docs/operations.md").read_text()
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"```yaml\n(.*?)\n *```", TEXT, re.DOTALL)]
VALUES = [block for block in BLOCKS if re.match("# (more )?values", block)]


def test_the_values_of_the_page_are_found() -> None:
    assert len(VALUES) == 5
    assert VALUES[0].startswith("# values.yaml")


@pytest.mark.parametrize("position", range(5))
def test_the_chart_takes_the_values_of_the_page(position: int, tmp_path: Path) -> None:
    files = []
    for number in sorted({0, position}):
        path = tmp_path / f"{number}.yaml"
        path.write_text(VALUES[number])
        files += ["--values", str(path)]
    found = objects(*files, release="sluice")
    [config] = [each for each in found if each["kind"] == "ConfigMap" and "sluice.yaml" in (each.get("data") or {})]
    (tmp_path / "sluice.yaml").write_text(config["data"]["sluice.yaml"])
    assert load(tmp_path / "sluice.yaml", None).routes


def test_names_on_the_page_are_names_of_the_chart(tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text(VALUES[0])
    found = objects("--values", str(tmp_path / "values.yaml"), release="sluice")
    names = {each["metadata"]["name"] for each in found}
    named = set(re.findall(r"(?:deploy/|configmap |svc/)(sluice-[a-z-]+)", TEXT))
    assert len(named) > 1 and named <= names
    images = {
        c["image"] for each in found if each["kind"] == "Deployment" for c in each["spec"]["template"]["spec"]["containers"]
    }
    assert images == {"registry.example/sluice/gateway:0.1.0", "docker.io/vllm/vllm-openai:v0.32.0"}


def test_a_key_is_made_as_the_page_says(tmp_path: Path) -> None:
    assert "sluice key new --config deploy/compose/sluice.yaml --tenant me" in TEXT
    (tmp_path / "sluice.yaml").write_text((ROOT / "deploy/compose/sluice.yaml").read_text())
    command = [sys.executable, "-m", "sluice", "key", "new", "--config", str(tmp_path / "sluice.yaml"), "--tenant", "me"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("sk-")
    assert yaml.safe_load((tmp_path / "keys.yaml").read_text())[0]["tenant"] == "me"


def test_every_file_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"\b((?:deploy|helm|docs)/[A-Za-z0-9_./@-]+[A-Za-z0-9])", TEXT)) - {"deploy/compose/keys.yaml"}
    ours = {name for name in named if not re.fullmatch(r"deploy/sluice-[a-z-]+", name)}  # a Deployment of kubectl
    assert len(ours) > 8
    assert [name for name in sorted(ours) if not (ROOT / name).exists()] == []
