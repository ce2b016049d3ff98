"""EndpointSlices as a set of workers."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sluice.config import Kubernetes
from sluice.discovery.base import Found
from sluice.discovery.endpoint_slices import merged
from tests.support.kube_api import pod

HTTP = [{"name": "http", "port": 8000, "protocol": "TCP"}]


def a_slice(*endpoints: Any, ports: Any = HTTP) -> dict[str, Any]:
    return {"endpoints": list(endpoints), "ports": ports}


def found(*slices: Any, **asked: Any) -> set[Found]:
    return set(merged(slices, Kubernetes.model_validate({"service": "vllm"} | asked)))


def test_slices_are_merged():
    first, second = a_slice(pod("10.0.0.1", "u1"), pod("10.0.0.2", "u2")), a_slice(pod("10.0.0.3", "u3"))
    assert found(first, second) == {Found(f"http://10.0.0.{k}:8000", f"u{k}") for k in (1, 2, 3)}


@pytest.mark.parametrize(
    ("conditions", "is_draining"),
    [
        ({"ready": True}, False),
        ({"ready": None}, False),  # unknown means ready
        ({"ready": False}, True),
        ({"ready": False, "terminating": True}, True),
        ({"ready": True, "terminating": True}, True),  # of a Service that publishes pods which are not ready
        ({"ready": True, "terminating": False}, False),
    ],
)
def test_a_pod_that_is_not_ready_or_terminates_gets_nothing_new(conditions, is_draining):
    [one] = found(a_slice(pod("10.0.0.1", "u1", **conditions)))
    assert one.is_draining is is_draining


def test_a_pod_of_a_dual_stack_service_is_one_worker():
    six, four = a_slice(pod("fd00::1", "u1"), pod("fd00::2", "u2")), a_slice(pod("10.0.0.1", "u1"))
    assert found(six, four) == {Found("http://10.0.0.1:8000", "u1"), Found("http://[fd00::2]:8000", "u2")}


def test_a_pod_that_moves_between_slices_is_one_worker_and_ready_if_one_says_so():
    old, new = a_slice(pod("10.0.0.1", "u1", ready=False)), a_slice(pod("10.0.0.1", "u1"))
    assert found(old, new) == found(new, old) == {Found("http://10.0.0.1:8000", "u1")}


def test_of_two_pods_at_one_address_the_one_that_takes_calls_is_meant():
    gone, here = a_slice(pod("10.0.0.1", "old", terminating=True)), a_slice(pod("10.0.0.1", "new"))
    assert found(gone, here) == found(here, gone) == {Found("http://10.0.0.1:8000", "new")}


PORTS = [
    {"name": "dns", "port": 53, "protocol": "UDP"},
    {"name": "metrics", "port": 9090, "protocol": "TCP"},
    {"name": "http", "port": 8000, "protocol": "TCP"},
]


@pytest.mark.parametrize(
    ("asked", "ports", "urls"),
    [
        ({}, PORTS, {"http://10.0.0.1:9090"}),
        ({"port_name": "http"}, PORTS, {"http://10.0.0.1:8000"}),
        ({"port_name": "grpc"}, PORTS, set()),
        ({"port": 1234}, None, {"http://10.0.0.1:1234"}),
        ({"scheme": "https", "port_name": "http"}, PORTS, {"https://10.0.0.1:8000"}),
        ({}, [{"port": None}, {"port": True}, {"port": 70_000}, {"port": "80"}], set()),
        ({}, None, set()),
    ],
)
def test_the_port_is_the_one_that_is_asked_for(asked, ports, urls):
    assert {one.url for one in found(a_slice(pod("10.0.0.1", "u1"), ports=ports), **asked)} == urls


@pytest.mark.parametrize("addresses", [None, [], ["vllm.internal"], ["10.0.0.1:80"], [7], "10.0.0.1"])
def test_what_is_no_address_is_left_out(addresses):
    assert found(a_slice({"addresses": addresses}, pod("10.0.0.2", "u2"))) == {Found("http://10.0.0.2:8000", "u2")}


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("10.0.0.1"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["addresses", "conditions", "ready", "targetRef", "uid", "port", "name"]), inner)
    ),
    max_leaves=10,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])  # the machine's fault, not the examples'
@given(st.lists(st.fixed_dictionaries({}, optional={"endpoints": JSON, "ports": JSON | st.just(HTTP)}), max_size=3))
def test_any_json_is_a_set_of_workers(slices):
    for one in found(*slices):
        assert one.url.startswith("http://")
