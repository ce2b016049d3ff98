"""What every routing policy must do, whatever it prefers: a new one in `POLICIES` passes these tests as they are."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.loading import load
from sluice.policies import POLICIES
from sluice.policies.base import RoutingPolicy
from sluice.types import Call, Endpoint, Tenant
from sluice.upstream.connections import Connections
from sluice.worker import Worker

CALL = Call(id="1", tenant=Tenant("acme", "k"), route="smollm2", endpoint=Endpoint.CHAT, path=Endpoint.CHAT.value)
LOADS = st.lists(st.integers(0, 100), min_size=1, max_size=20)
CONNECTIONS = Connections("http://worker")  # policies know nothing of them


def workers(loads: list[int]) -> list[Worker]:
    made = [Worker(f"http://worker-{k}", CONNECTIONS) for k in range(len(loads))]
    for worker, load_now in zip(made, loads, strict=True):
        worker.in_flight = load_now
    return made


def made(name: str) -> RoutingPolicy:
    policy: RoutingPolicy = load(POLICIES[name])()
    return policy


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=50)
@given(loads=LOADS, data=st.data())
def test_it_picks_one_of_the_candidates(name, loads, data):
    policy, everyone = made(name), workers(loads)
    for now in range(3):
        candidates = data.draw(st.lists(st.sampled_from(everyone), min_size=1, unique=True))
        assert policy.pick(candidates, CALL, float(now)) in candidates


@pytest.mark.parametrize("name", POLICIES)
@given(loads=LOADS)
def test_it_only_looks(name, loads):
    policy, candidates = made(name), workers(loads)
    before = list(candidates)
    policy.pick(candidates, CALL, 0.0)
    assert candidates == before
    assert [worker.in_flight for worker in candidates] == loads


@pytest.mark.parametrize("name", POLICIES)
def test_it_takes_any_sequence_of_candidates(name):
    assert made(name).pick(tuple(workers([1, 2])), CALL, 0.0).url.startswith("http://worker-")


@pytest.mark.parametrize("name", POLICIES)
def test_it_forgets_workers_it_knew_and_others(name):
    policy, candidates = made(name), workers([0, 0, 0])
    policy.pick(candidates, CALL, 0.0)
    for worker in candidates[:2]:
        policy.forget(worker)
    assert policy.pick(candidates[2:], CALL, 1.0) is candidates[2]


@pytest.mark.parametrize("name", POLICIES)
def test_between_equals_everyone_gets_some(name):
    policy, candidates = made(name), workers([0] * 4)
    picked = Counter(policy.pick(candidates, CALL, 0.0).url for _ in range(400))
    assert len(picked) == 4 and min(picked.values()) >= 50
