"""What every routing policy must do, whatever it prefers: a new one in `POLICIES` passes these tests as they are."""

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.loading import load
from sluice.policies import POLICIES
from sluice.policies.base import RoutingPolicy
from sluice.prefix import block_hashes
from sluice.types import Call, Endpoint, Prefix, Tenant, Usage
from sluice.upstream.connections import Connections
from sluice.worker import EngineLoad, Lease, Worker

CALL = Call(id="1", tenant=Tenant("acme", "k"), route="smollm2", endpoint=Endpoint.CHAT, path=Endpoint.CHAT.value)
LOADS = st.lists(st.integers(0, 100), min_size=1, max_size=20)
CONNECTIONS = Connections("http://worker")  # policies know nothing of them
SESSIONS = st.sampled_from(["", "a", "b", "c"])
ADAPTERS = st.sampled_from([None, None, "pirate", "nobody-has-it"])
# Prompts of a few kilobytes that share beginnings.
PROMPTS = st.lists(st.sampled_from([b"x", b"y"]), max_size=6).map(lambda parts: b"".join(part * 1024 for part in parts))


def workers(loads: list[int]) -> list[Worker]:
    made = [Worker(f"http://worker-{k}", CONNECTIONS) for k in range(len(loads))]
    for worker, load_now in zip(made, loads, strict=True):
        worker.in_flight = load_now
    return made


def made(name: str) -> RoutingPolicy:
    policy: RoutingPolicy = load(POLICIES[name])()
    return policy


def call(prompt: bytes = b"", *, id: str = "1", session: str = "", adapter: str | None = None) -> Call:
    prefix = block_hashes(prompt) if prompt else Prefix()
    return replace(CALL, id=id, prefix=prefix, prompt_tokens=len(prompt) // 4, session=session, adapter=adapter, stream=True)


CALLS = st.builds(call, PROMPTS, id=st.integers(0, 9).map(str), session=SESSIONS, adapter=ADAPTERS)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=20)
@given(loads=LOADS, calls=st.lists(CALLS, min_size=3, max_size=3), data=st.data())
def test_it_picks_one_of_the_candidates(name, loads, calls, data):
    policy, everyone = made(name), workers(loads)
    for now, asked in enumerate(calls):
        candidates = data.draw(st.lists(st.sampled_from(everyone), min_size=1, unique=True))
        picked = policy.pick(candidates, asked, float(now))
        assert picked in candidates
        assert policy.prefill_tokens(asked, picked) >= 0
        assert policy.reason(asked, picked).isascii()


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=20)
@given(loads=LOADS, asked=CALLS)
def test_it_only_looks(name, loads, asked):
    policy, candidates = made(name), workers(loads)
    for worker in candidates[::2]:
        worker.load = EngineLoad(num_running=2, num_waiting=3)
    before = list(candidates)
    seen = [(worker.in_flight, worker.prefill_tokens, worker.load, worker.backlog.ends_at) for worker in candidates]
    policy.prefill_tokens(asked, policy.pick(candidates, asked, 0.0))
    assert candidates == before
    assert seen == [(worker.in_flight, worker.prefill_tokens, worker.load, worker.backlog.ends_at) for worker in candidates]


@pytest.mark.parametrize("name", POLICIES)
def test_it_takes_any_sequence_of_candidates(name):
    assert made(name).pick(tuple(workers([1, 2])), CALL, 0.0).url.startswith("http://worker-")


@pytest.mark.parametrize("name", POLICIES)
def test_it_forgets_workers_it_knew_and_others(name):
    policy, candidates = made(name), workers([0, 0, 0])
    asked = call(b"x" * 4096, session="a")
    policy.prefill_tokens(asked, policy.pick(candidates, asked, 0.0))
    for worker in candidates[:2]:
        policy.forget(worker)
    assert policy.pick(candidates[2:], asked, 1.0) is candidates[2]


@pytest.mark.parametrize("name", POLICIES)
def test_between_equals_everyone_gets_some(name):
    policy, candidates = made(name), workers([0] * 4)
    picked = Counter(policy.pick(candidates, CALL, 0.0).url for _ in range(400))
    assert len(picked) == 4 and min(picked.values()) >= 50


STEPS = st.lists(st.tuples(st.sampled_from(["send", "first", "end", "leave", "come"]), CALLS, st.integers(0, 99)), max_size=40)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=20, deadline=None)
@given(steps=STEPS)
def test_through_any_life_of_a_pool_it_picks_candidates_and_nothing_is_held_at_the_end(name, steps):
    """Calls are sent, begin, end well and are cut off, in any order; workers leave and new ones come."""
    policy, pool, clock = made(name), workers([0, 0, 0]), [0.0]
    everyone = list(pool)
    running: list[tuple[Call, Lease]] = []
    with ExitStack() as held:
        for what, asked, number in steps:
            now = clock[0] = clock[0] + number / 50
            if what == "send":
                worker = policy.pick(tuple(pool), asked, now)
                assert worker in pool
                tokens = policy.prefill_tokens(asked, worker)
                lease = held.enter_context(worker.lease(tokens, lambda: clock[0], shows_first_event=asked.stream))
                running.append((asked, lease))
            elif what == "leave" and len(pool) > 1:
                policy.forget(pool.pop(number % len(pool)))
            elif what == "come":
                pool.append(Worker(f"http://worker-{number}", CONNECTIONS))
                everyone.append(pool[-1])
            elif running:
                asked, lease = running[number % len(running)]
                if what == "first":
                    lease.prefilled()
                elif what == "end":
                    policy.observe(asked, lease.worker, Usage(100, 10, number, exact=True))
            assert all(worker.in_flight >= 0 and worker.prefill_tokens >= 0 for worker in everyone)
    assert all(worker.in_flight == worker.prefill_tokens == 0 for worker in everyone)


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"round_robin"}))
@settings(max_examples=20)
@given(number=st.integers(0, 3), prompt=PROMPTS, session=SESSIONS)
def test_a_call_for_an_adapter_goes_to_a_worker_that_has_it_loaded(name, number, prompt, session):
    policy, candidates = made(name), workers([0] * 4)
    candidates[number].adapters = frozenset({"pirate"})
    candidates[number].in_flight = 50
    assert policy.pick(candidates, call(prompt, session=session, adapter="pirate"), 0.0) is candidates[number]


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"round_robin"}))
def test_a_worker_whose_engine_says_nothing_is_not_taken_for_idle(name):
    policy, candidates = made(name), workers([0, 0, 0])
    for worker in candidates[:2]:
        worker.load = EngineLoad(num_running=5, num_waiting=5)
    asked = call(b"x" * 8192)
    picked = Counter(policy.pick(candidates, replace(asked, prefix=Prefix()), 0.0) for _ in range(300))
    assert picked[candidates[2]] < 200
