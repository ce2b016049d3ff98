"""The alerts: Prometheus takes them, they fire when they should, and each has a page that says what to do."""

import re
from pathlib import Path

import yaml

from tests.deploy.tools import CHART, ROOT, default, run, tool

ALERTS = CHART / "files/alerts.yaml"
RUNBOOKS = ROOT / "deploy/runbooks"


def names() -> set[str]:
    return {rule["alert"] for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]}


def test_prometheus_accepts_the_rules() -> None:
    done = run(tool("promtool"), "check", "rules", ALERTS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_when_it_should_and_not_before() -> None:
    tests = ROOT / "deploy/monitoring/alerts_test.yaml"
    done = run(tool("promtool"), "test", "rules", tests)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = [case for test in yaml.safe_load(tests.read_text())["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names()
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names()


def test_a_changed_threshold_is_noticed(tmp_path: Path) -> None:
    tests = yaml.safe_load((ROOT / "deploy/monitoring/alerts_test.yaml").read_text())
    (tmp_path / "alerts.yaml").write_text(ALERTS.read_text().replace("> 0.05", "> 0.5"))
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({**tests, "rule_files": ["alerts.yaml"]}))
    done = run(tool("promtool"), "test", "rules", tmp_path / "test.yaml")
    assert done.returncode != 0 and "GatewayHighErrorRate" in done.stdout + done.stderr


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    assert {page.stem for page in RUNBOOKS.glob("*.md")} == names()
    for page in RUNBOOKS.glob("*.md"):
        headings = re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)
        assert headings == ["What it means", "What to look at", "What to do"], page.name


def test_every_alert_says_how_bad_it_is_and_links_to_its_page() -> None:
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            assert rule["labels"]["severity"] in ("critical", "warning")
            assert rule["annotations"]["runbook_url"] == f"runbooks/{rule['alert']}.md"


def test_the_chart_carries_the_same_alerts_and_lets_each_be_changed() -> None:
    [rule] = [each for each in default("--set=monitoring.prometheusRule.enabled=true") if each["kind"] == "PrometheusRule"]
    groups = rule["spec"]["groups"]
    assert [group["rules"] for group in groups] == [group["rules"] for group in yaml.safe_load(ALERTS.read_text())["groups"]]

    values = CHART / "ci/full-values.yaml"
    [changed] = [each for each in default("--values", str(values)) if each["kind"] == "PrometheusRule"]
    by_name = {rule["alert"]: rule for group in changed["spec"]["groups"] for rule in group["rules"]}
    assert set(by_name) == names() - {"WorkerPreemptions"}
    assert by_name["GatewayHighErrorRate"]["for"] == "10m"
    assert by_name["GatewayHighErrorRate"]["labels"]["severity"] == "warning"
    assert by_name["GatewayDown"]["annotations"]["runbook_url"] == "https://wiki.example/deploy/runbooks/GatewayDown.md"
