"""The worker that a conversation's name stands for."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sluice.policies.session_affinity import SessionAffinity
from sluice.types import Usage
from tests.unit.policies.test_contract import call, workers

PROMPT = b"x" * 8192


def homes(candidates, names):
    policy = SessionAffinity()
    return [policy.pick(candidates, call(PROMPT, session=name), 0.0) for name in names]


@given(name=st.text(min_size=1), order=st.randoms(use_true_random=False))
def test_replicas_agree_whatever_the_order_of_their_workers(name, order):
    candidates = workers([0] * 8)
    shuffled = list(candidates)
    order.shuffle(shuffled)
    assert homes(candidates, [name]) == homes(shuffled, [name])


def test_conversations_are_spread_evenly():
    counts = Counter(homes(workers([0] * 8), [f"chat-{k}" for k in range(4000)]))
    assert len(counts) == 8 and 400 < min(counts.values()) <= max(counts.values()) < 600


def test_a_worker_that_goes_moves_only_its_own_conversations():
    candidates, names = workers([0] * 5), [f"chat-{k}" for k in range(500)]
    before, after = homes(candidates, names), homes(candidates[:-1], names)
    assert all(one is two for one, two in zip(before, after, strict=True) if one is not candidates[-1])


def test_a_home_that_is_busy_for_longer_than_the_prompt_takes_is_left():
    candidates = workers([0, 0])
    policy, asked = SessionAffinity(), call(PROMPT, session="a")
    home = policy.pick(candidates, asked, 0.0)
    home.backlog.send(asked.prompt_tokens - 1, 0.0, shows_first_event=True)
    assert policy.pick(candidates, asked, 0.0) is home
    assert policy.reason(asked, home) == "session_affinity; home"
    home.backlog.send(2, 0.0, shows_first_event=True)
    other = policy.pick(candidates, asked, 0.0)
    assert other is not home
    assert policy.reason(asked, other) == "session_affinity; home is busy"
    assert policy.prefill_tokens(asked, other) == asked.prompt_tokens


def test_how_much_is_cached_at_home_is_learnt():
    policy, asked, [worker] = SessionAffinity(), call(PROMPT, session="a"), workers([0])
    for _ in range(500):
        policy.observe(asked, worker, Usage(1000, 5, 750, exact=True))
    policy.pick([worker], asked, 0.0)
    assert policy.prefill_tokens(asked, worker) == round(asked.prompt_tokens / 4)


def test_calls_without_a_name_go_by_load():
    candidates = workers([1, 0, 1])
    assert SessionAffinity().pick(candidates, call(PROMPT), 0.0) is candidates[1]
