"""What runs Sluice without Kubernetes: Compose's file, and the units of systemd."""

import re
from pathlib import Path

import pytest
import yaml

from sluice.config import load
from tests.deploy.tools import ROOT, run, tool

COMPOSE = ROOT / "deploy/compose"
UNITS = ROOT / "deploy/systemd"
SERVICES = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]


def test_the_gateway_accepts_the_configuration_of_compose() -> None:
    settings = load(COMPOSE / "sluice.yaml", {})
    assert settings.server.host == "0.0.0.0"
    assert set(settings.routes) == {"sim"}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_is_read_only_without_capabilities_and_of_one_version(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.search(r":v?\d+\.\d+\.\d+(-alpine)?$", service["image"])


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_what_a_service_mounts_and_builds_from_is_there(name: str) -> None:
    volumes = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["volumes"]
    for mount in SERVICES[name].get("volumes", []):
        source = mount.split(":")[0]
        assert source in volumes or (COMPOSE / source).exists(), mount
    if build := SERVICES[name].get("build"):
        assert (COMPOSE / build["context"] / build["dockerfile"]).exists()


@pytest.mark.parametrize("name", ["gateway", "simulated-worker", "vllm"])
def test_a_service_has_longer_to_stop_than_it_drains(name: str) -> None:
    grace_s = int(SERVICES[name]["stop_grace_period"].removesuffix("s"))
    words = " ".join(map(str, SERVICES[name]["command"]))
    asked = re.search(r"--shutdown-timeout[= ](\d+)", words)
    assert grace_s > (int(asked[1]) if asked else load(COMPOSE / "sluice.yaml", {}).drain_timeout_s)


def test_only_loopback_is_published() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) > 3 and all(port.startswith("127.0.0.1:") for port in ports)


def test_what_prometheus_scrapes_are_services_of_compose() -> None:
    jobs = yaml.safe_load((COMPOSE / "prometheus.yaml").read_text())["scrape_configs"]
    targets = {job["job_name"]: [t for each in job["static_configs"] for t in each["targets"]] for job in jobs}
    assert targets["sluice"] == ["gateway:8001"]
    assert {target.split(":")[0] for target in targets["sluice-worker"]} <= set(SERVICES)


@pytest.mark.parametrize(("unit", "exposure"), [("sluice.service", 2.0), ("vllm@.service", 5.0)])
def test_systemd_understands_the_unit_and_finds_it_hardened(unit: str, exposure: float, tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    text = (UNITS / unit).read_text()
    there = re.sub(r"/opt/(sluice|vllm)/bin/\w+", "/bin/true", text)  # verify wants the program to exist
    copy = tmp_path / unit
    copy.write_text(there)
    done = run(analyze, "verify", "--man=no", copy)
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr
    done = run(analyze, "security", "--offline=true", UNITS / unit)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None and float(found[1]) <= exposure, done.stdout[-2000:]


def test_a_unit_has_longer_to_stop_than_it_drains() -> None:
    text = (UNITS / "sluice.service").read_text()
    assert int(re.search(r"TimeoutStopSec=(\d+)", text)[1]) > 120  # type: ignore[index]
    text = (UNITS / "vllm@.service").read_text()
    stop, drain = re.search(r"TimeoutStopSec=(\d+)", text), re.search(r"--shutdown-timeout (\d+)", text)
    assert stop is not None and drain is not None and int(stop[1]) > int(drain[1])
