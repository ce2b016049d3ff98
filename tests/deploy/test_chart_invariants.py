"""What must hold of every object for every kind of site: what an API server would refuse, and what users were bitten by."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.tools import CI_VALUES, Object, default, named, objects, of_ci, one, pod_templates, workload

BY_NAME = pytest.mark.parametrize("values", CI_VALUES, ids=lambda path: path.stem.removesuffix("-values"))
KEDA = str(next(path for path in CI_VALUES if path.stem == "keda-values"))
FULL = str(next(path for path in CI_VALUES if path.stem == "full-values"))


def containers(pod: Object) -> Iterator[Object]:
    yield from pod["spec"].get("initContainers", [])
    yield from pod["spec"]["containers"]


@BY_NAME
def test_every_pod_passes_pod_security_restricted_and_cannot_write_its_root(values: Path) -> None:
    for name, pod in pod_templates(of_ci(values)):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec), name
        for volume in spec.get("volumes", []):
            assert set(volume) - {"name"} <= {"configMap", "secret", "emptyDir", "persistentVolumeClaim", "projected"}, name
        for container in containers(pod):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["readOnlyRootFilesystem"] is True, name
            assert security["capabilities"] == {"drop": ["ALL"]}, name


@BY_NAME
def test_user_ids_are_numbers_unless_the_cluster_gives_them(values: Path) -> None:
    for name, pod in pod_templates(of_ci(values)):
        security = pod["spec"]["securityContext"]
        if values.stem == "openshift-values":
            assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(security), name
        else:
            assert security["runAsUser"] == security["fsGroup"] > 1000, name


@BY_NAME
def test_only_a_gateway_that_follows_endpoint_slices_has_a_token(values: Path) -> None:
    found = of_ci(values)
    holders = {name for name, pod in pod_templates(found) if pod["spec"]["automountServiceAccountToken"]}
    assert all(name.startswith("Deployment/") and name.endswith("-gateway") for name in holders)
    assert bool(holders) == (values.stem not in ("minimal-values", "openshift-values"))
    rules = [rule for each in found if each["kind"] == "Role" for rule in each["rules"]]
    assert all(rule["verbs"] == ["get", "list", "watch"] for rule in rules)
    assert not any(each["kind"].startswith("ClusterRole") for each in found)


@BY_NAME
def test_a_pod_has_more_time_to_go_than_it_needs(values: Path) -> None:
    for name, pod in pod_templates(of_ci(values)):
        for container in containers(pod):
            waits_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            drains_s = [int(arg.split("=")[1]) for arg in container.get("args", []) if arg.startswith("--shutdown-timeout=")]
            if container["name"] == "sluice-gateway":
                assert waits_s, name
                drains_s = [120]
            if container["name"] == "sluice-worker":
                assert waits_s and drains_s, name
            if drains_s:
                assert pod["spec"]["terminationGracePeriodSeconds"] > waits_s + drains_s[0], name


def test_the_grace_follows_the_drain() -> None:
    gateway = one(default("--set=gateway.drain.timeoutSeconds=900"), "Deployment", "r-gateway")
    assert gateway["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 10 + 900 + 15


def test_before_kubernetes_1_30_the_wait_is_a_program() -> None:
    gateway = one(default("--kube-version=1.29.0"), "Deployment", "r-gateway")
    [container] = gateway["spec"]["template"]["spec"]["containers"]
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["python3", "-c", "import time; time.sleep(10)"]


@BY_NAME
def test_whoever_is_scaled_automatically_has_no_count_of_its_own(values: Path) -> None:
    found = of_ci(values)
    scaled = {each["spec"]["scaleTargetRef"]["name"] for each in found if "scaleTargetRef" in each.get("spec", {})}
    for each in found:
        if workload(each):
            assert ("replicas" in each["spec"]) == (each["metadata"]["name"] not in scaled)


def test_keda_scales_gateways_and_workers() -> None:
    found = objects("--values", KEDA)
    targets = {
        (each["spec"]["scaleTargetRef"]["kind"], each["spec"]["scaleTargetRef"]["name"])
        for each in found
        if each["kind"] == "ScaledObject"
    }
    assert targets == {("Deployment", "r-gateway"), ("StatefulSet", "r-llama-worker")}


@BY_NAME
def test_every_image_names_a_version(values: Path) -> None:
    for name, pod in pod_templates(of_ci(values)):
        for container in containers(pod):
            assert re.search(r"(:[^:@/]+|@sha256:[0-9a-f]{64})$", container["image"]), name
            assert not container["image"].endswith(":latest"), name


def test_the_registry_goes_before_every_image_that_names_none() -> None:
    images = {c["image"] for _, pod in pod_templates(objects("--values", FULL)) for c in containers(pod)}
    assert all(image.startswith("registry.example/") for image in images)
    own = default("--set=global.imageRegistry=registry.example", "--set=gateway.image.repository=ghcr.io/me/gateway")
    [container] = one(own, "Deployment", "r-gateway")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "ghcr.io/me/gateway:0.1.0"


@BY_NAME
def test_the_chart_makes_no_secrets(values: Path) -> None:
    assert not [each for each in of_ci(values) if each["kind"] == "Secret"]


@BY_NAME
def test_every_pod_is_behind_a_network_policy(values: Path) -> None:
    found = of_ci(values)
    policies = [each["spec"] for each in found if each["kind"] == "NetworkPolicy"]
    for name, pod in pod_templates(found):
        labels = pod["metadata"]["labels"]
        matching = [p for p in policies if p["podSelector"]["matchLabels"].items() <= labels.items()]
        assert len(matching) == 1, name
        assert all(policy["policyTypes"] == ["Ingress", "Egress"] for policy in matching), name


def test_only_gateways_and_prometheus_reach_workers() -> None:
    [policy] = [each for each in default() if each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == "r-llama-worker"]
    [rule] = policy["spec"]["ingress"]
    assert [sorted(peer) for peer in rule["from"]] == [["podSelector"], ["namespaceSelector"]]
    assert rule["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"


def test_an_offline_worker_reaches_nothing() -> None:
    [policy] = [
        each
        for each in default("--set=models.llama.offline=true")
        if each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == "r-llama-worker"
    ]
    assert policy["spec"]["egress"] == []


@BY_NAME
def test_port_names_are_short_enough(values: Path) -> None:
    for each in of_ci(values):
        if each["kind"] == "NetworkPolicy":
            for rule in [*each["spec"].get("ingress", []), *each["spec"].get("egress", [])]:
                assert all(len(str(port["port"])) <= 15 for port in rule.get("ports", []))
    for _, pod in pod_templates(of_ci(values)):
        assert all(len(port["name"]) <= 15 for c in containers(pod) for port in c.get("ports", []))


@BY_NAME
def test_a_disruption_budget_says_one_thing_and_never_blocks_a_node(values: Path) -> None:
    for each in of_ci(values):
        if each["kind"] == "PodDisruptionBudget":
            assert "minAvailable" not in each["spec"]
            assert each["spec"]["maxUnavailable"] == 1


def test_a_single_gateway_has_no_disruption_budget() -> None:
    found = default("--set=gateway.replicaCount=1")
    assert not [each for each in found if each["kind"] == "PodDisruptionBudget"]


@pytest.mark.parametrize("release", ["r", "a-release-name-as-long-as-helm-lets-one-be-fifty3"])
@BY_NAME
def test_names_fit_and_are_unique(values: Path, release: str) -> None:
    found = objects("--values", str(values), "--set=fullnameOverride=", release=release)
    names = [named(each) for each in found]
    assert len(names) == len(set(names))
    for each in found:
        assert len(each["metadata"]["name"]) <= (52 if workload(each) else 63), each["metadata"]["name"]
        labels = {**each["metadata"].get("labels", {}), **selector_of(each)}
        assert all(len(value) <= 63 for value in labels.values())


def selector_of(one_object: Object) -> dict[str, str]:
    selector: dict[str, str] = (
        one_object.get("spec", {}).get("selector", {}).get("matchLabels", {}) if workload(one_object) else {}
    )
    return selector


def test_two_releases_in_one_namespace_do_not_collide() -> None:
    for values in CI_VALUES:
        if values.stem != "full-values":  # names itself
            first, second = (objects("--values", str(values), release=release) for release in ("sluice", "sluice-b"))
            assert not set(map(named, first)) & set(map(named, second))
            pods = [pod["metadata"]["labels"] for _, pod in pod_templates(second)]
            for each in first:
                selector = each.get("spec", {}).get("selector", {}) if each["kind"] == "Service" else selector_of(each)
                assert not any(selector and selector.items() <= labels.items() for labels in pods)


def test_selectors_never_change_because_an_upgrade_could_not_change_them() -> None:
    selectors = {f"{e['kind']}/{e['metadata']['name']}": selector_of(e) for e in objects("--values", FULL) if workload(e)}
    common = {"app.kubernetes.io/name": "sluice", "app.kubernetes.io/instance": "r"}
    assert selectors == {
        "Deployment/ai-gateway": {**common, "app.kubernetes.io/component": "gateway"},
        "Deployment/ai-embeddings-worker": {**common, "app.kubernetes.io/component": "worker", "sluice/model": "embeddings"},
        "StatefulSet/ai-llama-worker": {**common, "app.kubernetes.io/component": "worker", "sluice/model": "llama"},
        "StatefulSet/ai-redis": {**common, "app.kubernetes.io/component": "redis"},
        "StatefulSet/ai-retrieval": {**common, "app.kubernetes.io/component": "retrieval"},
    }


@BY_NAME
def test_every_service_and_policy_selects_pods_that_are_there(values: Path) -> None:
    found = of_ci(values)
    pods = [pod["metadata"]["labels"] for _, pod in pod_templates(found)]
    for each in found:
        if each["kind"] in ("Service", "NetworkPolicy", "PodDisruptionBudget"):
            spec = each["spec"]
            selector = (
                spec["selector"]
                if each["kind"] == "Service"
                else (spec.get("podSelector") or spec.get("selector"))["matchLabels"]
            )
            assert any(selector.items() <= labels.items() for labels in pods), each["metadata"]["name"]


def test_a_changed_configuration_rolls_the_gateways_and_an_unchanged_one_does_not() -> None:
    def annotations(*more: str) -> dict[str, str]:
        found: dict[str, str] = one(default(*more), "Deployment", "r-gateway")["spec"]["template"]["metadata"]["annotations"]
        return found

    assert annotations() == annotations("--set=gateway.replicaCount=5")
    assert annotations() != annotations("--set=gateway.drain.timeoutSeconds=60")


def test_the_port_that_asks_for_no_key_is_behind_no_service_that_leads_outside() -> None:
    found = objects("--values", FULL)
    outside = [each for each in found if each["kind"] == "Service" and each["spec"].get("type") == "LoadBalancer"]
    assert [port["targetPort"] for each in outside for port in each["spec"]["ports"]] == ["http"]
    [ingress] = [each for each in found if each["kind"] == "Ingress"]
    [path] = ingress["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"]["service"] == {"name": "ai-gateway", "port": {"name": "http"}}
